"""What the benchmark of the upper half makes of its runs."""

import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def top_half(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("top_half")


def timed(speed: float, peak: float) -> dict[str, Any]:
    names = ("seconds_per_episode", "tokens_per_second", "cpu_seconds_per_episode", "response_length")
    return {**dict.fromkeys(names, 1.0), "episodes_per_second": speed, "peak_rss_bytes": peak * 2**30, "load": [1, 2]}


def test_ratios_are_those_of_a_round_and_not_of_medians(top_half: ModuleType) -> None:
    # The third round had a busy neighbour all along.
    rounds = [{"all": timed(a, 4), "top-half": timed(b, 3)} for a, b in ((2.0, 4.0), (2.0, 3.0), (0.2, 0.5))]
    found = top_half.compare(rounds)
    assert found["speed_ratio"] == {"median": 2.0, "low": 1.5, "high": 2.5}
    assert found["memory_ratio"]["median"] == 0.75
    printed = top_half.table({"rows": {"default": found}})
    assert "speed 2.00 (1.50 to 2.50)" in printed
    assert "| default | top-half | 1.00 | 1.00 | 1.00 | 3.00 | 2.0 |" in printed


def test_accuracy_is_compared_by_ranking_over_the_mean_of_the_seeds(top_half: ModuleType) -> None:
    by_seed = {
        "all": {0: [1.0, 0.0, 0.5], 1: [0.0, 1.0, 0.5]},  # means 0.5, 0.5, 0.5
        "top-half": {0: [0.5, 0.5, 0.5], 1: [0.3, 0.3, 0.3]},  # 0.4 everywhere: the difference has no spread
    }
    trained = {
        side: {seed: {"accuracies": said, "sft_loss": seed / 2} for seed, said in seeds.items()}
        for side, seeds in by_seed.items()
    }
    found = top_half.summarise(trained)
    assert found["difference"] == pytest.approx({"mean": -0.1, "low": -0.1, "high": -0.1})
    assert found["accuracy"]["all"]["mean"] == 0.5
    assert found["sft_loss"]["top-half"] == [0.0, 0.5]
