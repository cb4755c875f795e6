"""Responses kept by content: never generated twice, never taken for another model's."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from evaluation.compare import responses as module
from evaluation.compare.responses import Responder
from onebase.model.roles import Roles

PROMPTS = [(5, 6, 7), (8, 9), (10, 11, 12, 13), (14,), (15, 16)]
MakeRoles = Callable[..., Roles]


def responder(roles: Roles, folder: Path, *, batch: int = 2, seed: int = 0) -> Responder:
    return Responder(roles=roles, prompts=PROMPTS, folder=folder, max_new_tokens=6, batch=batch, seed=seed)


def test_a_second_run_takes_what_the_first_has_generated(
    make_roles: MakeRoles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roles = make_roles("sft")
    first = responder(roles, tmp_path)("sft", adapter_sha256="a", temperature=1.0)
    monkeypatch.setattr(Responder, "_generate", lambda *_: pytest.fail("generated again"))
    second = responder(roles, tmp_path)("sft", adapter_sha256="a", temperature=1.0)
    assert first.sequences == second.sequences
    assert first.prompts == second.prompts == tuple(PROMPTS)


def test_another_adapter_temperature_or_seed_is_generated_anew(make_roles: MakeRoles, tmp_path: Path) -> None:
    roles = make_roles("sft", "ppo")
    respond = responder(roles, tmp_path)
    respond("sft", adapter_sha256="a", temperature=0.0)
    respond("ppo", adapter_sha256="b", temperature=0.0)
    respond(None, adapter_sha256=None, temperature=0.0)
    respond("sft", adapter_sha256="a", temperature=1.0)
    responder(roles, tmp_path, seed=1)("sft", adapter_sha256="a", temperature=1.0)
    assert len(list(tmp_path.glob("*.json"))) == 5


def test_roles_answer_differently(make_roles: MakeRoles, tmp_path: Path) -> None:
    roles = make_roles("sft", "ppo")
    respond = responder(roles, tmp_path)
    answers = {name: respond(name, adapter_sha256=name, temperature=0.0).sequences for name in ("sft", "ppo")}
    assert answers["sft"] != answers["ppo"]


def test_another_environment_is_generated_anew(
    make_roles: MakeRoles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    roles = make_roles("sft")
    responder(roles, tmp_path)("sft", adapter_sha256="a", temperature=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 77)
        responder(roles, tmp_path)("sft", adapter_sha256="a", temperature=0.0)
    with monkeypatch.context() as patch:
        patch.setattr(module, "versions", lambda: {"peft": "9.9"})
        responder(roles, tmp_path)("sft", adapter_sha256="a", temperature=0.0)
    assert len(list(tmp_path.glob("*.json"))) == 3


def test_the_same_weights_at_another_scale_are_another_adapter() -> None:
    keys = {
        module.adapter_sha256({"adapter/adapter_model.safetensors": "1" * 64, "adapter/adapter_config.json": config})
        for config in ("a" * 64, "b" * 64, "a" * 64)
    }
    assert len(keys) == 2


@pytest.mark.parametrize("edit", ["a token", "a response", "the list", "all of it"])
def test_kept_responses_that_were_edited_are_not_taken(
    make_roles: MakeRoles, tmp_path: Path, edit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    respond = responder(make_roles("sft"), tmp_path)
    first = respond("sft", adapter_sha256="a", temperature=0.0)
    (path,) = tmp_path.glob("*.json")
    content = json.loads(path.read_text())
    match edit:
        case "a token":
            content["responses"][0][0] += 1
        case "a response":
            content["responses"].pop()
        case "the list":
            content = content["responses"]
        case _:
            content = {"sha256": "0" * 64, "responses": "[" * 9}
    path.write_text(json.dumps(content))
    assert respond("sft", adapter_sha256="a", temperature=0.0).sequences == first.sequences
    assert f"{path}: the responses kept here cannot be used, so they are generated again" in capsys.readouterr().err
    assert json.loads(path.read_text())["responses"]
