"""The stages, in order, and who reads whom."""

import importlib
from typing import Any

from onebase.cli.command import Loader

ORDER = ("sft", "reward", "ppo", "dpo")

PARENTS: dict[str, tuple[str, ...]] = {"sft": (), "reward": ("sft",), "ppo": ("sft", "reward"), "dpo": ("sft",)}
"""The stages that a stage starts from."""


def entry(stage: str) -> Any:
    """The stage's `__main__`: what it READS and WRITES, the FLAGS that only this stage has, and its `load`."""
    return importlib.import_module(f"{stage}.__main__")


def loader(stage: str) -> Loader:
    """Imports a stage's recipe class and run(), when called."""
    return entry(stage).load
