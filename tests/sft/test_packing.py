"""Demonstrations share a row only where the model keeps them apart."""

from collections.abc import Callable
from typing import Any

import pytest

from onebase.errors import RecipeError
from onebase.model.roles import Roles
from sft import packing
from sft.recipe import SftArguments

ZooRoles = Callable[..., Roles]

APART = ("llama", "phi3-longrope", "gemma2", "gpt2", "mixtral")
MIXED = ("lfm2", "qwen3-next", "qwen3.5", "jamba", "bamba", "bloom", "opt", "mpt", "gpt-oss", "llama4")


@pytest.mark.parametrize("name", [*APART, *MIXED])
def test_packing_is_tried(zoo_roles: ZooRoles, name: str) -> None:
    assert packing.keeps_apart(zoo_roles(name)) == (name in APART)


@pytest.mark.parametrize(
    ("name", "wanted", "packs"),
    [
        ("llama", {}, True),
        ("llama", {"packing": True}, True),
        ("llama", {"packing": False}, False),
        ("lfm2", {}, False),
        ("bloom", {"packing": False}, False),
    ],
)
def test_a_recipe_that_says_nothing_packs_where_the_model_can(
    zoo_roles: ZooRoles, name: str, wanted: dict[str, Any], packs: bool
) -> None:
    assert packing.decide(zoo_roles(name), SftArguments.model_validate(wanted)) is packs


@pytest.mark.parametrize("name", ["qwen3-next", "opt"])
@pytest.mark.parametrize("key", packing.KEYS)
def test_packing_that_the_model_cannot_do_is_refused(zoo_roles: ZooRoles, name: str, key: str) -> None:
    with pytest.raises(RecipeError, match=rf"trl\.{key}=true: \w+ does not keep the demonstrations"):
        packing.decide(zoo_roles(name), SftArguments.model_validate({key: True}))


def test_rows_cannot_be_shared_and_not_shared(zoo_roles: ZooRoles) -> None:
    with pytest.raises(RecipeError, match=r"trl\.padding_free=true.*trl\.packing=false"):
        packing.decide(zoo_roles("llama"), SftArguments.model_validate({"padding_free": True, "packing": False}))
