"""What `ppo/time/*` say of a step: which parts there are, and that they are all of it."""

from collections.abc import Callable

import pytest

from ppo.recipe.recipe import PpoRecipe
from ppo.train import run
from tests.factories import rows_of

PREFIX = "ppo/time/"
ALWAYS = {"rollout_prefill", "rollout_decode", "score_reference", "score_reward", "optimizer", "other", "step"}
TEXTS = "{source: builtin:tasks, split: heldout, rows: 4}"


@pytest.fixture
def run_with(make_recipe: Callable[..., PpoRecipe]) -> Callable[..., list[dict]]:
    def run_with(*overrides: str) -> list[dict[str, float]]:
        """The seconds of the first two steps by part."""
        recipe = make_recipe("train.episodes=16", *overrides)
        run(recipe)
        rows = rows_of(recipe.out)
        timed = [row for row in rows if f"{PREFIX}step" in row]
        return [{name.removeprefix(PREFIX): row[name] for name in row if name.startswith(PREFIX)} for row in timed[:2]]

    return run_with


@pytest.mark.parametrize(
    ("overrides", "first", "second"),
    [
        ((), {"score_value", "train_policy", "train_value"}, {"score_value", "train_policy", "train_value"}),
        (
            ("train.minibatch=8", "train.epochs=1"),
            {"score_value", "train_policy", "train_value"},
            {"score_value", "train_policy", "train_value"},
        ),
        (("value.kind=shared",), {"train_policy"}, {"train_policy"}),  # its values come with decoding
        (
            ("advantages.kind=rloo", "sampling.responses_per_prompt=4", "train.old_logprobs=recomputed"),
            {"score_policy", "train_policy"},
            {"score_policy", "train_policy"},
        ),
        (
            ("value.warmup_steps=1", f"pretraining={{data: [{TEXTS.replace('heldout', 'sft')}], weight: 0.5}}"),
            {"score_value", "train_value"},
            {"score_value", "train_value", "train_policy", "train_ptx"},
        ),
        (
            ("value.kind=shared", f"evaluation={{prompts: [{TEXTS}], every: 3}}", "train.episodes=24"),
            {"train_policy", "evaluation"},  # the SFT policy, before the first update
            {"train_policy"},
        ),
    ],
    ids=["adapter", "one step a rollout", "shared", "rloo", "warm-up and ptx", "evaluation"],
)
def test_the_parts_of_a_step_are_those_that_run_in_it_and_add_up_to_it(
    run_with: Callable[..., list[dict[str, float]]], overrides: tuple[str, ...], first: set[str], second: set[str]
) -> None:
    steps = run_with(*overrides)
    assert [set(parts) for parts in steps] == [ALWAYS | first, ALWAYS | second]
    for parts in steps:
        step = parts.pop("step")
        assert sum(parts.values()) == pytest.approx(step)
        assert all(seconds >= 0 for seconds in parts.values())
