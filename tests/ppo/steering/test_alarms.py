"""Each alarm rings for what it is meant for, and no other does; on a run that goes well all are silent."""

import json
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest

from onebase.recipe import reader
from onebase.recipe.sections import TrackSection
from onebase.tracking.tracker import Tracker
from ppo.recipe.recipe import PpoRecipe
from ppo.recipe.steering import AlarmsSection
from ppo.steering.alarms import (
    ALARMS,
    CHECKED,
    COMPARES,
    ENTROPY,
    EVALUATED,
    GRADIENT,
    JUDGED,
    OPTIMISED,
    VALUE,
    raised,
    remember,
    unable,
)

SECTION = AlarmsSection(window=2)

GOOD = {
    "ppo/kl": 3.0,
    "ppo/ratio_max": 1.5,
    "ppo/response_length": 20.0,
    "ppo/entropy": 1.0,
    "ppo/stop_rate": 0.9,
    "ppo/explained_variance": 0.4,
}


def rows(**series: list[Any]) -> list[dict[str, float]]:
    """Rows of a run that goes well but for these numbers."""
    length = max(map(len, series.values()))
    return [GOOD | {f"ppo/{name}": float(values[index]) for name, values in series.items()} for index in range(length)]


def evaluated(*pairs: tuple[Any, Any]) -> list[dict[str, float]]:
    return [GOOD | {EVALUATED: float(reward), CHECKED: float(check)} for reward, check in pairs]


def scored(*pairs: tuple[Any, Any]) -> list[dict[str, float]]:
    """Mean and deviation of each step's scores."""
    return [GOOD | {"ppo/score": float(mean), "ppo/score_std": float(deviation)} for mean, deviation in pairs]


def moved(*norms: float) -> list[dict[str, float]]:
    """The norm of the policy's gradient in each step."""
    return [GOOD | {GRADIENT: float(norm)} for norm in norms]


CASES: list[Any] = [
    ("KL above budget", "kl.weight", rows(kl=[1, 5, 29, 32]), rows(kl=[1, 5, 29, 31])),
    ("ratio too large", "train.learning_rate", rows(ratio_max=[1, 10.1]), rows(ratio_max=[10.1, 10.0])),
    ("length drift", "kl.weight", rows(response_length=[10, 12, 22, 23]), rows(response_length=[10, 12, 22, 21])),
    ("length drift", "shorter", rows(response_length=[10, 12, 5, 5.9]), rows(response_length=[10, 12, 5, 6.1])),
    ("entropy collapse", "train.epochs", rows(entropy=[2, 2, 0.6, 0.5]), rows(entropy=[2, 2, 0.7, 0.6])),
    (
        "stop rate falling",
        "reward.eos_penalty",
        rows(stop_rate=[0.9, 0.9, 0.7, 0.6]),
        rows(stop_rate=[0.9, 0.9, 0.7, 0.75]),
    ),
    (
        "value explains nothing",
        "value.learning_rate",
        rows(explained_variance=[0.5, 0.1, -0.1, -0.2]),
        rows(explained_variance=[-0.5, -0.1, -0.04, -0.2]),
    ),
    (
        "reward up, task score down",
        "best/",
        evaluated((0, 0.5), (1, 0.7), (2, 0.64)),
        evaluated((0, 0.5), (1, 0.7), (2, 0.66)),
    ),
    ("all rewards equal", "reward.terms", scored((0, 0.4), (0, 0), (0, 0)), scored((0, 0), (0, 0), (0.5, 0.1))),
    # The mean of equal fp32 numbers is a rounding off.
    ("all rewards equal", "reward.terms", scored((0.1, 1e-8), (7, 0)), scored((0.1, 1e-8), (7, 1e-4))),
    ("policy stands still", "train.batch", moved(0.2, 0.0, 0.0), moved(0.0, 0.0, 1e-12)),
]


@pytest.mark.parametrize(("name", "knob", "bad", "good"), CASES)
def test_an_alarm_rings_for_its_fault_alone_and_names_a_knob(
    name: str, knob: str, bad: list[dict[str, float]], good: list[dict[str, float]]
) -> None:
    rung = raised(bad, SECTION)
    assert list(rung) == [name]
    assert knob in rung[name]
    assert raised(good, SECTION) == {}


def test_every_alarm_has_a_case_above() -> None:
    assert {case[0] for case in CASES} == ALARMS.keys()


@pytest.mark.parametrize("window", [2, 10])
def test_equal_rewards_and_a_policy_that_stands_still_are_heard_from_the_second_step_on(window: int) -> None:
    """A run of fewer steps than the window is told as well."""
    for rows_, name in ((scored((0, 0), (0, 0)), "all rewards equal"), (moved(0, 0), "policy stands still")):
        assert raised(rows_[:1], AlarmsSection(window=window)) == {}
        assert raised(rows_, AlarmsSection(window=window)).keys() == {name}


def test_steps_of_one_episode_are_compared_with_each_other() -> None:
    """The deviation of a single score is 0, whatever it is."""
    alone = [{name: value for name, value in row.items() if name != "ppo/score_std"} for row in scored((1, 0), (1, 0))]
    assert raised(alone, SECTION).keys() == {"all rewards equal"}
    assert raised([alone[0], alone[1] | {"ppo/score": 1.001}], SECTION) == {}


def test_while_the_policy_waits_for_the_value_function_it_may_stand_still() -> None:
    waiting = [{key: value for key, value in row.items() if key != "ppo/entropy"} for row in moved(0, 0, 0)]
    assert raised(waiting, SECTION) == {}
    assert raised([*waiting, *moved(0, 0)], SECTION).keys() == {"policy stands still"}


@pytest.mark.parametrize("name", ["response_length", "entropy", "stop_rate"])
def test_what_is_compared_with_the_start_is_silent_until_the_start_is_over(name: str) -> None:
    """Three steps of a window of two: the last two still hold one of the first two."""
    assert raised(rows(**{name: [0.99, 0.99, 0.01]}), SECTION) == {}


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 19, 20])
def test_a_run_that_is_too_short_for_an_alarm_is_told_so(steps: int) -> None:
    """With the window that is proposed they do ring."""
    unheard = unable(AlarmsSection(window=10), steps=steps, waiting=0, has_value=True)
    assert (unheard is None) == (steps == 20)
    if unheard is None or steps == 1:
        return
    assert {name for name in ALARMS if name in unheard} == {*COMPARES, VALUE}
    assert VALUE not in (unable(AlarmsSection(window=10), steps=steps, waiting=0, has_value=False) or "")
    (window,) = re.findall(r"alarms\.window=(\d+) lets", unheard)
    half = steps // 2
    series = [2.0] * (steps - half) + [0.1] * half
    for chosen, rings in ((int(window), True), (int(window) + 1, False)):
        rung = raised(rows(entropy=series, explained_variance=[-1] * steps), AlarmsSection(window=chosen))
        assert ({"entropy collapse", VALUE} <= rung.keys()) == rings


def test_while_the_policy_waits_only_its_entropy_is_missing() -> None:
    unheard = unable(AlarmsSection(window=10), steps=24, waiting=6, has_value=True)
    assert unheard is not None and {name for name in ALARMS if name in unheard} == {ENTROPY}
    assert "alarms.window=9 lets" in unheard
    logged = [{k: v for k, v in row.items() if k != "ppo/entropy"} for row in rows(explained_variance=[-1] * 6)]
    logged += rows(entropy=[2.0] * 9 + [0.1] * 9, explained_variance=[-1] * 18)
    assert raised(logged, AlarmsSection(window=10)).keys() == {VALUE}
    assert raised(logged, AlarmsSection(window=9)).keys() == {VALUE, ENTROPY}


@pytest.mark.parametrize("name", ["demo", "builtin-1h", "own", "llama-8b"])
def test_no_recipe_of_ours_is_too_short_for_its_alarms(name: str) -> None:
    for path in (Path(__file__).parents[3] / "recipes" / name).glob("ppo*.yaml"):
        recipe = reader.read(path, PpoRecipe)
        waiting = recipe.value.warmup_steps
        has_value = recipe.value_role is not None
        assert unable(recipe.alarms, steps=recipe.steps, waiting=waiting, has_value=has_value) is None


def test_a_check_that_falls_with_the_reward_is_no_exploit() -> None:
    assert raised(evaluated((1, 0.7), (0.5, 0.3)), SECTION) == {}


def test_the_judge_of_the_recipe_comes_before_the_tasks_own_checks() -> None:
    judged = [row | {JUDGED: judge} for row, judge in zip(evaluated((0, 0.5), (1, 0.5)), (0.9, 0.2), strict=True)]
    assert "the judge has fallen from 0.9 to 0.2" in raised(judged, SECTION)["reward up, task score down"]
    silent = [row | {JUDGED: 0.9} for row in evaluated((0, 0.5), (1, 0.2))]
    assert raised(silent, SECTION) == {}


@pytest.mark.parametrize(("rewards", "objectives"), [((1, 1), (-3, -1)), ((1, 0.5), (0, 2))])
def test_what_is_optimised_is_watched_as_the_reward_is(
    rewards: tuple[float, ...], objectives: tuple[float, ...]
) -> None:
    """A policy that only learns to avoid penalties: the reward stands or falls, the objective rises."""
    plain = evaluated(*zip(rewards, (0.7, 0.3), strict=True))
    assert raised(plain, SECTION) == {}
    with_objective = [row | {OPTIMISED: float(value)} for row, value in zip(plain, objectives, strict=True)]
    text = raised(with_objective, SECTION)["reward up, task score down"]
    assert f"the objective has risen from {objectives[0]:g} to {objectives[1]:g}" in text
    falls = [row | {OPTIMISED: float(-value)} for row, value in zip(plain, objectives, strict=True)]
    assert raised(falls, SECTION) == {}


def test_the_check_is_compared_with_its_best_and_not_with_the_start() -> None:
    assert raised(evaluated((0, 0.3), (1, 0.7), (2, 0.4)), SECTION).keys() == {"reward up, task score down"}


def test_a_value_function_may_be_bad_at_first() -> None:
    assert raised(rows(explained_variance=[-3, -2, -1]), SECTION) == {}


def test_steps_that_were_skipped_are_passed_over() -> None:
    """Where every mini-batch was skipped there is no entropy, and a KL that is not a number."""
    skipped = {"ppo/kl": math.nan, "ppo/stop_rate": 0.9, "ppo/ratio_max": math.inf}
    assert raised([*rows(kl=[3, 3, 3, 3]), skipped], SECTION) == {}


def test_rows_that_are_forgotten_change_no_alarm() -> None:
    """A long run in which everything drifts: with all rows and with the remembered ones the same alarms ring."""
    everything: list[dict[str, float]] = []
    kept: list[dict[str, float]] = []
    section = AlarmsSection(window=64, kl=15.0)
    rang = set[str]()
    for step in range(600):
        row = {name: value * (1 + step / 100) for name, value in GOOD.items()} | {
            "ppo/entropy": 1.0 / (1 + step / 50),
            "ppo/stop_rate": 0.9 - step / 1000,
            "ppo/score": step / 100,
            "ppo/score_std": 0.0 if 300 < step < 400 else 1.0,
            GRADIENT: 0.0 if step < 200 else 1.0,
            "ppo/other": 1.0,
        }
        if step % 50 == 0:
            row |= {EVALUATED: step / 10, CHECKED: 0.5 - abs(step - 100) / 1000}
        everything.append(row)
        kept = remember(kept, row)
        assert raised(kept, section) == raised(everything, section)
        rang |= raised(kept, section).keys()
    assert len(kept) < 210
    assert rang == ALARMS.keys() - {"value explains nothing"}


def test_an_alert_is_said_and_kept_and_told_to_wandb(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with Tracker(tmp_path, "ppo", TrackSection(wandb="offline"), {}) as tracker:
        tracker.alert("length drift", "responses are longer", step=3)
    assert "ppo, step 3: length drift: responses are longer" in capfd.readouterr().err
    (row,) = map(json.loads, (tmp_path / "alarms.jsonl").read_text().splitlines())
    assert row == {"step": 3, "title": "length drift", "text": "responses are longer"}
    (log,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    until = time.monotonic() + 60  # W&B's own process writes the file, and has little to say on a busy machine
    while b"responses are longer" not in log.read_bytes():
        assert time.monotonic() < until
        time.sleep(0.1)
