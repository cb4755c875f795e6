"""What the packing benchmark makes of its runs."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest


@pytest.fixture
def packing(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("packing")


def test_the_ratio_is_that_of_a_run_and_not_of_medians(packing: ModuleType) -> None:
    # The third run had a busy neighbour all along: its ratio is as good as the others'.
    seconds = [(1.0, 2.0), (1.0, 3.0), (5.0, 20.0)]
    runs = [
        {"packed": dict.fromkeys(packing.SHAPES, packed), "separate": dict.fromkeys(packing.SHAPES, separate)}
        for packed, separate in seconds
    ]
    measured = packing.compare(runs)["pair of DPO"]
    assert measured == {"packed": 1.0, "separate": 3.0, "ratio": 3.0, "range": [2.0, 4.0]}


def test_tokens_of_the_table_are_those_that_go_through_the_model(packing: ModuleType) -> None:
    numbers = {"packed": 1.0, "separate": 2.0, "ratio": 2.0, "range": [2.0, 2.0]}
    table = packing.table(dict.fromkeys(packing.SHAPES, numbers))
    assert "| ranking of 4 | 400/120/4 | 880 for 2080 | 2.00 | 1.00 | 2.00 [2.00, 2.00] |" in table
