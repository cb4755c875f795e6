"""`best/` is chosen by what a run optimises: held out, answers are rewarded as PPO rewards those that it trains on."""

from typing import Any

import pytest
import torch

from onebase.inference.sampling import Sample
from onebase.sequences.episodes import Episodes
from onebase.tracking.tracker import Tracker
from ppo.maths.rewards import ScoreMoments
from ppo.method import method_of
from ppo.recipe.recipe import PpoRecipe
from ppo.recipe.training import TrainSection
from ppo.rollout import PpoState, make_experience
from ppo.scores import EpisodeScores
from ppo.steering.evaluate import Answers, Measurement
from ppo.steering.frontier import Point, best_of
from ppo.steering.steering import Steering

LENGTHS = [2, 10, 7, 10]
STOPPED = [True, False, True, False]
SCORES = [1.0, 3.0, -2.0, 0.5]


def recipe_of(**reward: Any) -> PpoRecipe:
    content = {
        "base": {"model": "none"},
        "parents": {"sft": "sft", "reward": "reward"},
        "data": [{"source": "builtin:tasks", "split": "rl"}],
        "sampling": {"max_new_tokens": 10},
        "kl": {"weight": 0.0},
        "reward": reward,
    }
    return PpoRecipe.model_validate(content)


def answers(scores: list[float] = SCORES, stopped: list[bool] = STOPPED) -> Answers:
    lengths = torch.tensor(LENGTHS[: len(scores)]).float()
    return Answers(scores=torch.tensor(scores), stopped=torch.tensor(stopped), lengths=lengths)


@pytest.mark.parametrize(
    ("reward", "objective"),
    [
        ({"eos_penalty": 0.0}, 2.5 / 4),
        ({"eos_penalty": 4.0}, (2.5 - 8.0) / 4),
        ({"eos_penalty": 0.0, "clip": 1.0}, (1 + 1 - 1 + 0.5) / 4),
        # 7 of 10 tokens are 2 of the last 5, 10 are all of them.
        ({"eos_penalty": 1.0, "overlong": {"buffer": 5, "weight": 2.0}}, (2.5 - 2 * (0.4 + 1 + 1) - 2.0) / 4),
    ],
)
def test_the_objective_is_the_reward_less_all_penalties(reward: dict[str, Any], objective: float) -> None:
    shaped = answers().shaped(method_of(recipe_of(**reward)).reward, ScoreMoments())
    assert float(shaped.mean()) == pytest.approx(objective)


@pytest.mark.parametrize(
    "reward",
    [
        {"eos_penalty": 3.0},
        {"overlong": {"buffer": 4, "weight": 0.7}},
        {"whiten": True, "clip": 0.8, "eos_penalty": 0.3},
    ],
)
def test_training_and_evaluation_reward_the_same_answers_alike(reward: dict[str, Any]) -> None:
    """Without a price of the KL, the rewards of a response's tokens sum up to its part of the objective."""
    method, moments = method_of(recipe_of(**reward)), ScoreMoments(count=9.0, mean=0.5, variance=4.0)
    episodes = Episodes.of([[5]] * 4, [[6] * length for length in LENGTHS], pad_id=0)
    nothing = torch.zeros(episodes.mask.shape)
    drawn = Sample(episodes=episodes, logprobs=nothing, stopped=torch.tensor(STOPPED))
    scores = EpisodeScores(total=torch.tensor(SCORES), terms={}, members={})
    state = PpoState(kl_weight=0.0, score_moments=moments)
    experience = make_experience(drawn, scores, method, state, reference=nothing, values=nothing)
    rewarded = experience.rewards.sum(dim=1).mean()
    expected = answers().shaped(method.reward, moments).mean()
    assert float(expected) == pytest.approx(float(rewarded), abs=1e-6)


def measured(step: int, score: float, stopped: bool) -> Measurement:
    metrics = {"kl": 0.0, "objective": 100.0 - step}  # by another scale, of long ago
    return Measurement(
        point=Point(step=step, role="policy", metrics=metrics), answers=answers([score] * 2, [stopped] * 2)
    )


@pytest.mark.parametrize(("variance", "step"), [(1.0, 2), (100.0, 1)])
def test_scores_that_are_whitened_compare_on_the_scale_of_now(variance: float, step: int) -> None:
    """3 more of score for answers that do not end, which cost 1: a gain on a narrow scale, a loss on a wide one."""
    reward = method_of(recipe_of(whiten=True, eos_penalty=1.0)).reward
    moments = ScoreMoments(count=8.0, mean=0.0, variance=variance)
    evaluations = (measured(1, 0.0, True), measured(2, 3.0, False))
    both = [evaluation.on_scale(reward, moments) for evaluation in evaluations]
    best = best_of(both, kl_budget=1.0)
    assert best is not None and best.step == step


@pytest.mark.parametrize("batch", [1, 2])
def test_a_single_score_says_nothing_of_equal_rewards(batch: int) -> None:
    """Its deviation is 0, whatever is scored."""
    steering = Steering.__new__(Steering)
    steering._recipe = recipe_of().model_copy(update={"train": TrainSection(batch=batch, minibatch=1, episodes=4)})
    steering._rows, steering._raised, heard = [], set(), list[str]()
    tracker = Tracker.__new__(Tracker)
    tracker.alert = lambda title, text, *, step: heard.append(title)  # type: ignore[method-assign]  # no tracker with a folder
    for step, score in enumerate((0.2, 0.9, 0.4), start=1):
        steering.watch(step, {"ppo/score": score, "ppo/score_std": 0.0}, tracker)
    assert heard == ([] if batch == 1 else ["all rewards equal"])
