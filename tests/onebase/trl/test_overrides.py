"""Versions of TRL and transformers may change what our trainers override: then somebody must look."""

import hashlib
import importlib
import inspect
from collections.abc import Iterator, Mapping

import pytest
import transformers
import trl

from dpo.train import TokenPairTrainer
from onebase.trl import overrides
from sft.train import TokenTrainer

OURS = ("onebase", "sft", "dpo")
WHAT_TO_DO = (
    "changed in {version}. Read the change, and what onebase/trl/resumable.py makes of this method. Then run "
    "tests/sft, tests/dpo, tests/test_memory.py and tests/test_faults.py, put {sha256} into "
    "onebase/trl/overrides.py, and move the upper bound in pyproject.toml."
)


def is_ours(kind: type) -> bool:
    return kind.__module__.partition(".")[0] in OURS


def class_of(path: str) -> type:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def sha256_of(kind: type, method: str) -> str:
    return hashlib.sha256(inspect.getsource(vars(kind)[method]).encode()).hexdigest()[:12]


def overridden() -> Iterator[tuple[str, str]]:
    """Every method of the libraries that one of ours overrides: its class and name."""
    for trainer in (TokenTrainer, TokenPairTrainer):
        ours = {name for kind in trainer.__mro__ if is_ours(kind) for name in vars(kind) if not name.startswith("__")}
        for kind in trainer.__mro__:
            if kind.__module__.partition(".")[0] in ("trl", "transformers"):
                yield from ((f"{kind.__module__}.{kind.__name__}", name) for name in ours & vars(kind).keys())


LISTED = [
    (path, method, sha256)
    for table in (overrides.METHODS, overrides.READ)
    for path, methods in table.items()
    for method, sha256 in methods.items()
]


@pytest.mark.parametrize(("path", "method", "sha256"), LISTED, ids=[f"{path}.{name}" for path, name, _ in LISTED])
def test_a_method_that_we_override_is_the_one_that_we_have_read(path: str, method: str, sha256: str) -> None:
    kind, version = class_of(path), f"trl {trl.__version__}, transformers {transformers.__version__}"
    assert method in vars(kind), f"{path}.{method} is not there in {version}: ours is never called"
    digest = sha256_of(kind, method)
    assert digest == sha256, f"{path}.{method} {WHAT_TO_DO.format(version=version, sha256=digest)}"


def test_every_method_that_is_overridden_is_listed() -> None:
    listed: Mapping[str, Mapping[str, str]] = overrides.METHODS
    assert set(overridden()) == {(path, method) for path, methods in listed.items() for method in methods}


@pytest.mark.parametrize("name", overrides.ATTRIBUTES)
@pytest.mark.parametrize("path", ["trl.trainer.sft_trainer.SFTTrainer", "trl.trainer.dpo_trainer.DPOTrainer"])
def test_a_private_attribute_that_we_read_is_made_by_the_constructor(path: str, name: str) -> None:
    assert f"self.{name} = " in inspect.getsource(class_of(path).__init__)
