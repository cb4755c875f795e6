"""A reward model that is not known to beat "longer wins": PPO says so, or is refused where the recipe wants that."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluation.reward_model.verdict import Verdict
from onebase.errors import RecipeError, RecordError
from onebase.recipe import reader
from ppo.recipe.recipe import PpoRecipe
from ppo.start import read_parents

BETTER, UNTOLD, WORSE = (0.1, 0.3), (-0.1, 0.2), (-0.3, -0.1)


@pytest.fixture
def with_rewards(
    make_recipe: Callable[..., PpoRecipe], finish_run: Callable[[str], Path], tmp_path: Path
) -> Callable[..., PpoRecipe]:
    """A PPO run whose reward models (the smoke run's, its record edited) have these intervals over longer wins; None:
    one of an older Onebase."""
    home = finish_run("fp32")

    def make(*members: tuple[float, float] | None, required: bool) -> PpoRecipe:
        folders = [edited(home / "reward", tmp_path / f"reward-{n}", interval) for n, interval in enumerate(members)]
        return make_recipe(
            f"parents.reward=[{', '.join(map(str, folders))}]",
            f"reward.require_better_than_baselines={'true' if required else 'false'}",
        )

    return make


def edited(source: Path, target: Path, interval: tuple[float, float] | None) -> Path:
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("checkpoints"))
    content: dict[str, Any] = json.loads((target / "stage.json").read_text())
    content["parents"]["sft"]["path"] = str((source.parent / "sft").resolve())
    metrics = {name: value for name, value in content["metrics"].items() if "baseline" not in name}
    content["created"] = target.name  # members are two stages
    if interval is not None:
        low, high = interval
        verdict = Verdict(
            prompts=40, baseline="longer wins", baseline_accuracy=0.6, over=(low + high) / 2, low=low, high=high
        )
        metrics |= verdict.metrics
    (target / "stage.json").write_text(json.dumps(content | {"metrics": metrics}))
    return target


@pytest.mark.parametrize(
    ("members", "warned"),
    [([BETTER], []), ([UNTOLD], [0]), ([BETTER, WORSE], [1]), ([WORSE, UNTOLD], [0, 1]), ([None], [])],
)
def test_each_model_that_is_not_known_to_be_better_is_warned_of(
    with_rewards: Callable[..., PpoRecipe],
    capsys: pytest.CaptureFixture[str],
    members: list[tuple[float, float] | None],
    warned: list[int],
) -> None:
    read_parents(with_rewards(*members, required=False))
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("warning: the reward model")]
    assert [f"reward-{number}" in line for number, line in zip(warned, lines, strict=True)] == [True] * len(warned)
    assert all("'longer wins'" in line for line in lines)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([WORSE], r"reward-0: not better than 'longer wins'"),
        ([BETTER, UNTOLD], r"reward-1: it cannot be told"),
        ([BETTER, None], r"reward-1: not measured"),
    ],
)
def test_a_recipe_may_refuse_what_is_not_known_to_be_better(
    with_rewards: Callable[..., PpoRecipe], members: list[tuple[float, float] | None], message: str
) -> None:
    with pytest.raises(RecordError, match=message) as caught:
        read_parents(with_rewards(*members, required=True))
    assert "reward.require_better_than_baselines" in str(caught.value)


def test_models_that_are_better_are_taken(
    with_rewards: Callable[..., PpoRecipe], capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(read_parents(with_rewards(BETTER, BETTER, required=True))) == 3
    assert "warning" not in capsys.readouterr().err


def test_where_only_functions_score_there_is_nothing_to_require() -> None:
    settings = ["parents.reward=null", "value.kind=shared", "reward.require_better_than_baselines=true"]
    with pytest.raises(RecipeError, match="only functions score here"):
        terms = "reward.terms=[{kind: function, function: 'math:floor'}]"
        reader.read("recipes/smoke/ppo.yaml", PpoRecipe, [*settings, terms])
