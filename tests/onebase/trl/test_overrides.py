"""What our trainers override or read of TRL and transformers, beyond what these libraries promise to keep.

Versions of TRL and transformers may change it: then somebody must look.
"""

import hashlib
import importlib
import inspect
from collections.abc import Iterator, Mapping

import pytest
import transformers
import trl

from dpo.train import TokenPairTrainer
from sft.train import TokenTrainer

OURS = ("onebase", "sft", "dpo")
WHAT_TO_DO = (
    "changed in {version}. Read the change, and what onebase/trl/resumable.py makes of this method. Then run "
    "tests/sft, tests/dpo, tests/test_memory.py and tests/test_faults.py, put {sha256} into "
    "the tables of this file, and move the upper bound in pyproject.toml."
)

METHODS: Mapping[str, Mapping[str, str]] = {
    "transformers.trainer.Trainer": {
        "_load_from_checkpoint": "a2804e8d93a2",
        "_load_optimizer_and_scheduler": "741032f57d6f",
        "_load_rng_state": "d5ebdfc0a088",
        "_maybe_log_save_evaluate": "af101534f0f7",
        "compute_loss": "160dea726d2f",
        "evaluate": "47001f3acc99",
        "log": "73b8e3acd21a",
        "prediction_step": "d12d7a1d2f99",
        "training_step": "e9760c8ee103",
    },
    "trl.trainer.sft_trainer.SFTTrainer": {
        "compute_loss": "ca448211ff65",
        "evaluate": "77fd4eda985f",
        "log": "0d4c8e5d64f8",
        "prediction_step": "2db888fb0567",
        "training_step": "bba41f264647",
    },
    "trl.trainer.dpo_trainer.DPOTrainer": {
        "_prepare_dataset": "35e349e8e826",
        "compute_loss": "c453890e84be",
        "evaluate": "c4ef502ba33a",
        "log": "e80e122cfe5f",
        "prediction_step": "1b6b7f23f5e0",
        "training_step": "bba41f264647",
    },
}
"""By class, the methods that ours override: the first digits of the sha256 of their source."""

READ: Mapping[str, Mapping[str, str]] = {
    "transformers.trainer.Trainer": {
        "_inner_training_loop": "20ec4276e99f",
        "_run_epoch": "31aff00f34c3",
        "_finalize_training": "6d6d83d6a271",
        "train": "9a3c2bcd066d",
        "evaluation_loop": "a0fe4d6536f8",
    },
}
"""Methods that ours do not override: a run resumes exactly because of the order in which they call the others."""

ATTRIBUTES: Mapping[str, str] = {
    "_metrics": "lists of each metric since the last log: cut back when a micro-batch is repeated in pieces",
    "_total_train_tokens": "tokens so far: part of a checkpoint",
}
"""Private attributes that TRL's trainers make in their constructors, and what for."""


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
    for table in (METHODS, READ)
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
    listed: Mapping[str, Mapping[str, str]] = METHODS
    assert set(overridden()) == {(path, method) for path, methods in listed.items() for method in methods}


@pytest.mark.parametrize("name", ATTRIBUTES)
@pytest.mark.parametrize("path", ["trl.trainer.sft_trainer.SFTTrainer", "trl.trainer.dpo_trainer.DPOTrainer"])
def test_a_private_attribute_that_we_read_is_made_by_the_constructor(path: str, name: str) -> None:
    assert f"self.{name} = " in inspect.getsource(class_of(path).__init__)
