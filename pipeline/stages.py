"""The stages, in order, and who reads whom."""

import importlib

from onebase.cli.command import Loader

ORDER = ("sft", "reward", "ppo", "dpo")

PARENTS: dict[str, tuple[str, ...]] = {"sft": (), "reward": ("sft",), "ppo": ("sft", "reward"), "dpo": ("sft",)}
"""The stages that a stage starts from."""


def loader(stage: str) -> Loader:
    """Imports a stage's recipe class and run(), when called."""
    return importlib.import_module(f"{stage}.__main__").load


def describe(stage: str) -> tuple[str, str]:
    """What it reads and what it writes, for --help."""
    module = importlib.import_module(f"{stage}.__main__")
    return module.READS, module.WRITES


def flags(stage: str) -> dict[str, str]:
    """The switches that only this stage has, each with its line of help."""
    return getattr(importlib.import_module(f"{stage}.__main__"), "FLAGS", {})
