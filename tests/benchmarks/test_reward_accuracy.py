"""The comparison of accuracies: which learning rate is taken, what is paired with what, what is not run again."""

import importlib
import json
from argparse import Namespace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    return importlib.import_module("reward_accuracy")


def arguments_for(out: Path, **changes: Any) -> Namespace:
    settings = {
        "data": None,
        "questions": 4,
        "chosen_on": 2,
        "held_out": 2,
        "rates": [1e-4, 1e-3],
        "seeds": [0, 1],
        "prompt_tokens": 400,
        "model": "m",
        "tokens": 64,
        "batch": 2,
        "threads": 1,
        "out": out,
        "json": None,
    }
    return Namespace(**{**settings, **changes})


class Trainings:
    """Stands for the processes that train: what was asked for, and an accuracy that settings decide."""

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []

    def __call__(self, script: str, side: str, settings: dict[str, Any], threads: int) -> dict[str, Any]:
        self.calls.append({"side": side, **settings})
        # The peer's best rate is the other one, and it learns less from every seed.
        good = {"ours": 1e-4, "trl": 1e-3}[side] == settings["learning_rate"]
        right = {"ours": 1.0, "trl": 0.5}[side] if good else 0.0
        return {"accuracies": [right, right - settings["seed"] * 0.001], "seconds": 1.0}


@pytest.fixture
def trainings(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Trainings:
    made = Trainings()
    monkeypatch.setattr(module.processes, "start", made)
    return made


def test_the_best_rate_is_taken_and_of_equal_ones_the_lowest(module: ModuleType) -> None:
    by_rate = {1e-3: {"accuracies": [1.0, 0.0]}, 1e-4: {"accuracies": [0.5, 0.5]}, 1e-5: {"accuracies": [0.4, 0.5]}}
    assert module.best_rate(by_rate) == 1e-4
    assert module.best_rate({**by_rate, 1e-3: {"accuracies": [1.0, 0.1]}}) == 1e-3


def test_each_side_has_its_own_rate_and_no_reported_ranking_chose_it(
    module: ModuleType, trainings: Trainings, tmp_path: Path
) -> None:
    result = module.compare(arguments_for(tmp_path))
    assert result["rates"] == {"ours": 1e-4, "trl": 1e-3}
    searched = [settings for settings in trainings.calls if settings["held_out"]["part"] == "chosen-on"]
    reported = [settings for settings in trainings.calls if settings["held_out"]["part"] == "held-out"]
    assert {(settings["side"], settings["learning_rate"]) for settings in searched} == {
        (side, rate) for side in ("ours", "trl") for rate in (1e-4, 1e-3)
    }
    assert {settings["seed"] for settings in searched}.isdisjoint(settings["seed"] for settings in reported)
    assert [(settings["side"], settings["learning_rate"], settings["seed"]) for settings in reported] == [
        ("ours", 1e-4, 0),
        ("ours", 1e-4, 1),
        ("trl", 1e-3, 0),
        ("trl", 1e-3, 1),
    ]


def test_the_difference_is_ours_less_the_peers_on_the_same_rankings(module: ModuleType) -> None:
    # By ranking it is always 0.25 although accuracies go from 0 to 1: the interval is a point.
    runs = {
        "ours": {seed: {"accuracies": [0.25, 0.5 + seed / 4, 1.0], "seconds": 1.0} for seed in (0, 1)},
        "trl": {seed: {"accuracies": [0.0, 0.25 + seed / 4, 0.75], "seconds": 2.0} for seed in (0, 1)},
    }
    result = module.summary(runs)
    assert [result["difference"][name] for name in ("mean", "low", "high")] == pytest.approx([0.25, 0.25, 0.25])
    assert result["mean"]["ours"] == pytest.approx(0.625)
    assert result["accuracy"]["trl"]["1"]["mean"] == pytest.approx(1.25 / 3, abs=1e-5)


def test_seeds_do_not_make_more_rankings_than_there_are(module: ModuleType) -> None:
    def runs(seeds: range) -> dict[str, Any]:
        ours = {seed: {"accuracies": [0.0, 1.0, 1.0, 1.0], "seconds": 1.0} for seed in seeds}
        peer = {seed: {"accuracies": [0.0, 0.0, 0.0, 1.0], "seconds": 1.0} for seed in seeds}
        return {"ours": ours, "trl": peer}

    assert module.summary(runs(range(1)))["difference"] == module.summary(runs(range(9)))["difference"]


def test_what_has_been_trained_is_not_trained_again(module: ModuleType, trainings: Trainings, tmp_path: Path) -> None:
    first = module.compare(arguments_for(tmp_path))
    count = len(trainings.calls)
    again = module.compare(arguments_for(tmp_path))
    assert len(trainings.calls) == count == 8
    assert again["accuracy"] == first["accuracy"]
    (tmp_path / "trl-0.001-1-held-out.json").unlink()
    module.compare(arguments_for(tmp_path))
    assert [(settings["side"], settings["seed"]) for settings in trainings.calls[count:]] == [("trl", 1)]


def test_a_training_of_other_settings_is_not_taken_for_this_one(
    module: ModuleType, trainings: Trainings, tmp_path: Path
) -> None:
    module.compare(arguments_for(tmp_path))
    kept = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(SystemExit, match=r"other settings.*--out"):
        module.compare(arguments_for(tmp_path, questions=5))
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == kept


def test_the_table_shows_every_seed_and_both_rates(module: ModuleType, trainings: Trainings, tmp_path: Path) -> None:
    table = module.table(json.loads(json.dumps(module.compare(arguments_for(tmp_path)))))
    assert "| after 4 rankings | rate | seed 0 | seed 1 |" in table
    assert "| ours | 0.0001 | 1.000 [1.000, 1.000] |" in table
    assert "| trl | 0.001 | 0.500 [0.500, 0.500] |" in table
