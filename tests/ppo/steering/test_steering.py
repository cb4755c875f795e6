"""Evaluation, the best adapter, the average, ptx and alarms in real runs on the tiny model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from data.records import Prompt
from data.select.sources import Source
from data.select.sources import load as load_records
from data.tasks.checks import grade
from onebase.errors import DataError, Interrupted, RecipeError
from onebase.model.roles import WEIGHTS, Roles
from onebase.run import record
from ppo import train
from ppo.recipe.recipe import PpoRecipe
from ppo.steering import steering
from ppo.train import run
from tests.factories import load_base_of, rows_of, start, untimed

MakeRecipe = Callable[..., PpoRecipe]

HELD_OUT = "{source: builtin:tasks, split: heldout, rows: 6}"
STEERED = [
    f"evaluation={{prompts: [{HELD_OUT}], texts: [{HELD_OUT}], text_tokens: 480, every: 2, kl_budget: 1000}}",
    "ema={decay: 0.9}",
    "pretraining={data: [{source: builtin:tasks, split: sft, rows: 5}], weight: 0.5, examples_per_episode: 0.5}",
    *("train.episodes=32", "train.learning_rate=3e-3", "alarms.window=1", "checkpoint.every_steps=1"),
]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "adapter" / WEIGHTS)


def same(first: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return first.keys() == other.keys() and all(torch.equal(first[name], other[name]) for name in first)


def test_a_run_has_the_same_bits_with_and_without_evaluation(make_recipe: MakeRecipe) -> None:
    plain = make_recipe("train.episodes=32", out="plain")
    watched = make_recipe("train.episodes=32", STEERED[0], STEERED[1], out="watched")
    run(plain)
    run(watched)
    assert same(weights(plain.out), weights(watched.out))
    trained = [[row["ppo/score"] for row in rows_of(recipe.out) if "ppo/score" in row] for recipe in (plain, watched)]
    assert trained[0] == trained[1] and len(trained[0]) == 4


@pytest.mark.parametrize(("value", "deadly"), [("adapter", 1), ("adapter", 3), ("shared", 4)])
def test_a_run_that_is_killed_goes_on_to_the_same_bits_and_the_same_best(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch, value: str, deadly: int
) -> None:
    """Evaluations are one before step 1, then policy and average after steps 2 and 4."""
    settings = [*STEERED, f"value.kind={value}"]
    whole, cut = make_recipe(*settings, out="whole"), make_recipe(*settings, out="cut")
    run(whole)
    evaluate, calls = steering.evaluate, list[int]()

    def dies(*arguments: Any, **options: Any) -> Any:
        calls.append(1)
        if len(calls) == deadly:
            raise Interrupted(15)
        return evaluate(*arguments, **options)

    monkeypatch.setattr(steering, "evaluate", dies)
    with pytest.raises(Interrupted):
        run(cut)
    monkeypatch.setattr(steering, "evaluate", evaluate)
    run(cut)
    for name in ("", "ema", "best"):
        assert same(weights(whole.out / name), weights(cut.out / name)), name
    for name in ("metrics", "evaluation_samples"):
        assert untimed(rows_of(whole.out, name)) == untimed(rows_of(cut.out, name)), name
    for name in ("frontier.svg", "learning.svg"):
        assert (whole.out / "plots" / name).read_bytes() == (cut.out / "plots" / name).read_bytes()
    assert record.read(whole.out / "best").record.metrics == record.read(cut.out / "best").record.metrics


def test_what_evaluation_says_is_what_the_roles_say_by_themselves(make_recipe: MakeRecipe) -> None:
    """The table of samples holds the responses: scored and checked again, by stand-alone functions."""
    recipe = make_recipe(*STEERED, out="run")
    run(recipe)
    last = rows_of(recipe.out)[-1]
    samples = [row for row in rows_of(recipe.out, "evaluation_samples") if row["step"] == 4 and row["role"] == "policy"]
    prompts = load_records(
        [Source.model_validate({"source": "builtin:tasks", "split": "heldout", "rows": 6})], Prompt, seed=0
    ).records
    assert [row["prompt"] for row in samples] == [prompt.user_text for prompt in prompts]
    grades = [grade(prompt, row["response"]) for prompt, row in zip(prompts, samples, strict=True)]
    assert last["ppo/eval/task_score"] == pytest.approx(sum(grade.mean for grade in grades) / 6)
    assert last["ppo/eval/reward"] == pytest.approx(sum(row["reward"] for row in samples) / 6, abs=1e-4)
    assert last["ppo/eval/kl"] == pytest.approx(sum(row["kl"] for row in samples) / 6, abs=1e-4)
    assert last["ppo/eval/kl"] > 0
    assert last["ppo/eval_ema/kl"] != last["ppo/eval/kl"]


def test_before_the_first_update_the_policy_is_its_reference(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe(*STEERED, out="run")
    run(recipe)
    first = next(row for row in rows_of(recipe.out) if "ppo/eval/kl" in row)
    assert (first["step"], first["ppo/eval/kl"]) == (0, 0.0)
    assert [row["step"] for row in rows_of(recipe.out) if "ppo/eval/kl" in row] == [0, 2, 4]
    losses = [row["ppo/eval/lm_loss"] for row in rows_of(recipe.out) if "ppo/eval/lm_loss" in row]
    assert len(set(losses)) == 3 and all(0 < loss < 20 for loss in losses)
    assert [row["step"] for row in rows_of(recipe.out) if "ppo/pretraining_loss" in row] == [1, 2, 3, 4]


def test_the_best_adapter_is_the_one_that_was_measured_best_and_a_stage_of_its_own(make_recipe: MakeRecipe) -> None:
    """By what the run optimises: here the reward, less 9 for each answer that does not end."""
    recipe = make_recipe(*STEERED, "reward.eos_penalty=9", out="run")
    run(recipe)
    best_stage = record.read(recipe.out / "best", stage="ppo")
    measured = [
        (row["step"], role, {name: row[f"ppo/{role}/{name}"] for name in ("reward", "stop_rate", "objective")})
        for row in rows_of(recipe.out)
        for role in ("eval", "eval_ema")
        if f"ppo/{role}/reward" in row
    ]
    by_hand = [numbers["reward"] - 9 * (1 - numbers["stop_rate"]) for *_, numbers in measured]
    assert [numbers["objective"] for *_, numbers in measured] == pytest.approx(by_hand, abs=1e-4)
    step, role, best = max(measured, key=lambda item: item[2]["objective"])
    assert best_stage.record.metrics["ppo/step"] == step
    assert best_stage.record.metrics[f"ppo/{role}/objective"] == best["objective"]
    shown = [row["objective"] for row in rows_of(recipe.out, "evaluation_samples") if row["step"] == 0]
    assert sum(shown) / 6 == pytest.approx(measured[0][2]["objective"], abs=1e-3)
    assert set(best_stage.parents) == {"sft", "reward"}
    assert not list(recipe.out.glob(".best*"))
    roles = Roles(load_base_of(recipe)).load("policy", best_stage.adapter)
    assert roles.names == ("policy",)


def test_no_budget_leaves_the_policy_that_the_run_started_from(
    make_recipe: MakeRecipe, finish_run: Callable[[str], Path]
) -> None:
    recipe = make_recipe(*STEERED, "evaluation.kl_budget=1e-9", out="run")
    run(recipe)
    assert same(weights(recipe.out / "best"), weights(finish_run("fp32") / "sft"))
    assert not same(weights(recipe.out), weights(finish_run("fp32") / "sft"))


def test_the_average_follows_every_optimiser_step(make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch) -> None:
    """One step of decay 0.9 from the start, by hand: 0.9 start + 0.1 policy."""
    recipe = make_recipe(*STEERED[:2], "train.episodes=8", "train.minibatch=8", "train.epochs=1", out="run")
    run(recipe)
    before = start(recipe)
    after, average = weights(recipe.out), weights(recipe.out / "ema")
    for name, weight in before.state("reference").items():
        torch.testing.assert_close(average[name], 0.9 * weight + 0.1 * after[name])
    assert any(not torch.equal(average[name], after[name]) for name in after)
    assert record.read(recipe.out / "ema", stage="ppo").record.metrics["ppo/step"] == 1


def test_prompts_that_are_trained_on_are_not_held_out(make_recipe: MakeRecipe) -> None:
    recipe = make_recipe("evaluation={prompts: [{source: builtin:tasks, split: rl, rows: 4}]}", out="run")
    with pytest.raises(DataError, match=r"evaluation\.prompts: 4 of 4 prompts are trained on"):
        run(recipe)
    assert not recipe.out.exists()


def test_texts_that_are_trained_on_are_not_held_out(make_recipe: MakeRecipe, tmp_path: Path) -> None:
    """Whatever the sizes of the pieces that the same text is cut into."""
    bodies = (f"Story {number}: {' '.join(map(str, range(100 * number, 100 * number + 9)))}" for number in range(9))
    (tmp_path / "news.jsonl").write_text("".join(json.dumps({"body": body}) + "\n" for body in bodies))
    source = f"{{source: {tmp_path / 'news.jsonl'}, text: body}}"
    mix = f"pretraining={{data: [{source}], tokens: 16}}"
    recipe = make_recipe(f"evaluation={{prompts: [{HELD_OUT}], texts: [{source}], text_tokens: 24}}", mix, out="run")
    with pytest.raises(DataError, match=r"evaluation\.texts: 9 of \d+ pieces of text are in pretraining\.data as well"):
        run(recipe)
    assert not recipe.out.exists()


def test_a_judge_of_ones_own_is_asked_at_every_evaluation(
    make_recipe: MakeRecipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "brief.py").write_text("def judge(prompt, response):\n    return -len(response)\n")
    judged = STEERED[0].replace("every: 2", "every: 2, judge: 'brief:judge'")
    terms = "[{kind: adapter, weight: 2}, {kind: function, function: 'brief:judge', name: brevity, weight: 0.5}]"
    recipe = make_recipe(judged, "train.episodes=16", f"reward.terms={terms}", out="run")
    run(recipe)
    last, samples = rows_of(recipe.out)[-1], rows_of(recipe.out, "evaluation_samples")
    lengths = [len(row["response"]) for row in samples if row["step"] == 2]
    assert len(lengths) == 6
    assert last["ppo/eval/judge"] == pytest.approx(-sum(lengths) / 6)
    assert [row["judge"] for row in samples if row["step"] == 2] == [-length for length in lengths]
    judged_by_step = {row["step"]: row["ppo/eval/judge"] for row in rows_of(recipe.out) if "ppo/eval/judge" in row}
    best = record.read(recipe.out / "best").record.metrics
    assert best["ppo/eval/judge"] == max(judged_by_step.values()) == judged_by_step[int(best["ppo/step"])]
    assert last["ppo/eval/reward/brevity"] == last["ppo/eval/judge"]
    both = 2 * last["ppo/eval/reward/reward_model"] + 0.5 * last["ppo/eval/reward/brevity"]
    assert last["ppo/eval/reward"] == pytest.approx(both, abs=1e-4)
    with pytest.raises(RecipeError, match=r"evaluation\.judge: the module 'nobody' of 'nobody:judge' cannot"):
        run(make_recipe(judged.replace("brief:", "nobody:"), out="none"))


def test_a_checkpoint_with_average_and_best_takes_the_bytes_that_were_looked_for(
    make_recipe: MakeRecipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = list[int]()
    opened = train.stages.open_session
    monkeypatch.setattr(
        train.stages, "open_session", lambda *a, **k: (sizes.append(k["state_bytes"]), opened(*a, **k))[1]
    )
    recipe = make_recipe(*STEERED, out="run")
    run(recipe)
    newest = max((recipe.out / "checkpoints").glob("step-*"))
    size = sum(path.stat().st_size for path in newest.iterdir())
    assert size <= sizes[0] <= size + 2**20
