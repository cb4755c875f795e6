"""Whitened scores: the moments of a run's scores, and runs that are whitened by them."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

from onebase.model.roles import WEIGHTS
from ppo.maths.rewards import ScoreMoments
from ppo.recipe.recipe import PpoRecipe
from ppo.recipe.reward import RewardSection
from ppo.scores import Reward, RewardError, shape_scores
from ppo.train import run
from tests.factories import rows_of

SCORES = st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=9)


@settings(max_examples=200, deadline=None)
@given(batches=st.lists(SCORES, min_size=1, max_size=6))
def test_moments_batch_by_batch_are_those_of_all_scores_at_once(batches: list[list[float]]) -> None:
    moments = ScoreMoments()
    for batch in batches:
        moments = moments.including(torch.tensor(batch))
    together = numpy.array([score for batch in batches for score in batch], dtype=numpy.float64)
    assert moments.count == len(together)
    assert moments.mean == pytest.approx(together.mean(), rel=1e-9, abs=1e-9)
    assert moments.variance == pytest.approx(together.var(), rel=1e-9, abs=1e-7)


@settings(max_examples=200, deadline=None)
@given(batch=SCORES, scale=st.floats(0.5, 20), shift=st.floats(-50, 50))
def test_whitened_scores_forget_the_scale_and_the_zero_that_they_came_on(
    batch: list[float], scale: float, shift: float
) -> None:
    raw = torch.tensor(batch, dtype=torch.float32)
    # Else the rounding of nearly equal scores is blown up, or the variance's floor is felt.
    assume(float(raw.std(correction=0)) >= 1)
    first, second = (ScoreMoments().including(scores).standardise(scores) for scores in (raw, raw * scale + shift))
    assert torch.allclose(first, second, atol=1e-3)
    assert float(first.mean()) == pytest.approx(0, abs=1e-5)
    assert float(first.std(correction=0)) == pytest.approx(1, abs=1e-5)


def test_scores_that_are_all_equal_become_zero() -> None:
    scores = torch.full((5,), 3.25)
    assert ScoreMoments().including(scores).including(scores).standardise(scores).tolist() == [0.0] * 5


def test_the_state_survives_json_to_the_bit() -> None:
    moments = ScoreMoments().including(torch.tensor([0.1, 0.7, -1 / 3])).including(torch.tensor([math.pi]))
    assert ScoreMoments(**json.loads(json.dumps(asdict(moments)))) == moments


def test_scores_are_whitened_before_they_are_clipped_and_penalised() -> None:
    scores, stopped = torch.tensor([100.0, 104.0, 96.0, 100.0]), torch.tensor([True, True, True, False])
    section = RewardSection(whiten=True, clip=1.0, eos_penalty=0.25)
    reward = Reward(section=section, models=(), terms={}, limit=8)

    def shaped(moments: ScoreMoments) -> list[float]:
        return shape_scores(scores, stopped, torch.ones(4), reward, moments).tolist()

    # Mean 100, variance 8: the second and the third are sqrt(2) away, which the clip makes 1.
    assert shaped(ScoreMoments().including(scores)) == pytest.approx([0.0, 1.0, -1.0, -0.25])
    assert shaped(ScoreMoments(count=8.0, mean=98.0, variance=16.0)) == pytest.approx([0.5, 1.0, -0.5, 0.25])


@pytest.fixture
def whitened(make_recipe: Callable[..., PpoRecipe], here: Path) -> Callable[[str, str], PpoRecipe]:
    """Three steps whose only reward is this function of the folder, whitened; every step is saved."""

    def recipe(out: str, function: str) -> PpoRecipe:
        terms = f"reward={{terms: [{{kind: function, function: '{function}'}}], whiten: true, eos_penalty: 0}}"
        model = ("parents.reward=null", "value.kind=shared", "kl.weight=0")
        return make_recipe(*model, "train.episodes=24", "checkpoint.every_steps=1", terms, out=out)

    return recipe


def test_a_whitened_run_logs_the_moments_of_every_score_so_far(
    whitened: Callable[[str, str], PpoRecipe], tmp_path: Path
) -> None:
    (tmp_path / "letters.py").write_text("def reward(prompt, response):\n    return 50 + len(response)\n")
    recipe = whitened("run", "letters:reward")
    run(recipe)
    rows = rows_of(recipe.out)[1:]
    assert len(rows) == 3
    for number, row in enumerate(rows, 1):
        means = numpy.array([row["ppo/score"] for row in rows[:number]])
        variances = numpy.array([row["ppo/score_std"] ** 2 for row in rows[:number]])
        assert row["ppo/score_seen"] == 8 * number
        assert row["ppo/score_running_mean"] == pytest.approx(means.mean())
        assert row["ppo/score_running_variance"] == pytest.approx(variances.mean() + means.var(), rel=1e-4)
        whitened = (row["ppo/score"] - row["ppo/score_running_mean"]) / row["ppo/score_running_variance"] ** 0.5
        assert row["ppo/reward"] == pytest.approx(whitened, abs=1e-4)
    assert abs(rows[0]["ppo/reward"]) < 1e-5 < abs(rows[1]["ppo/reward"])


def test_a_killed_run_goes_on_to_the_same_bits_where_scores_are_whitened(
    whitened: Callable[[str, str], PpoRecipe], tmp_path: Path
) -> None:
    """Ended by its own reward in the third step of three, after two steps' worth of moments."""
    (tmp_path / "tired.py").write_text(
        "import pathlib\ncalls = []\ndef reward(prompt, response):\n    calls.append(0)\n"
        "    if len(calls) == 21 and not pathlib.Path('mended').exists():\n        return None\n"
        "    return len(response) / 9\n"
    )
    broken = whitened("broken", "tired:reward")
    with pytest.raises(RewardError):
        run(broken)
    (tmp_path / "mended").touch()
    run(broken)
    whole = whitened("whole", "tired:reward")
    run(whole)
    resumed, other = (load_file(recipe.out / "adapter" / WEIGHTS) for recipe in (broken, whole))
    assert resumed.keys() == other.keys()
    assert all(torch.equal(resumed[name], other[name]) for name in resumed)
    last = [json.loads((recipe.out / "metrics.jsonl").read_text().splitlines()[-1]) for recipe in (broken, whole)]
    kept = [{name: value for name, value in row.items() if "ppo/score" in name} for row in last]
    assert kept[0] == kept[1]
    assert kept[0]["ppo/score_seen"] == 24
