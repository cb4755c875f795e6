"""Tables of a comparison by hand: each source of prompts alone, and the mean of both grades."""

import json
from pathlib import Path

import numpy as np
import pytest

from data.chat.conversations import EncodedPrompt
from data.tasks import generate
from evaluation.compare import run_plots
from evaluation.compare.compare import Answers, Comparison
from evaluation.compare.responses import task_grades


def encoded(rows: int = 6) -> list[EncodedPrompt]:
    """Prompts of both held-out splits by turns; their tokens do not matter here."""
    return [EncodedPrompt(prompt=prompt, ids=(1,)) for prompt in generate.prompts("heldout", rows, seed=3)]


def comparison() -> Comparison:
    before = Answers(name="base", texts=list("abcdef"), metrics={"form": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5]})
    after = Answers(name="sft", texts=list("ABCDEF"), metrics={"form": [0.1, 0.1, 0.4, 0.2, 0.7, 0.4]})
    return Comparison(prompts=encoded(), answers=[before, after])


def test_each_source_has_the_rows_of_its_own_prompts() -> None:
    parts = comparison().by_source()
    families, templates = (parts[f"builtin:tasks/{split}"] for split in ("heldout-families", "heldout-templates"))
    assert [prompt.prompt.meta["family"] for prompt in families.prompts] == [
        prompt.meta["family"] for prompt in generate.prompts("heldout-families", 3, seed=3)
    ]
    assert families.answers[1].texts == ["A", "C", "E"]
    assert templates.answers[1].texts == ["B", "D", "F"]
    assert families.estimates(0)["base"]["form"].mean == pytest.approx(0.2)
    assert families.differences(0)["sft over base"]["form"].mean == pytest.approx((0.1 + 0.2 + 0.3) / 3)
    assert templates.differences(0)["sft over base"]["form"].mean == pytest.approx((0.0 - 0.1 - 0.1) / 3)


def test_the_task_score_is_the_mean_of_correctness_and_form() -> None:
    prompts = encoded()
    rambling = [f"Well, I am quite sure that it must be {prompt.prompt.meta['gold']}" for prompt in prompts]
    grades = task_grades(prompts, rambling)
    assert any(correct != form for correct, form in zip(grades["correctness"], grades["form"], strict=True))
    for correct, form, both in zip(*grades.values(), strict=True):
        assert both == pytest.approx((correct + form) / 2)


def test_figures_are_drawn_of_what_was_logged_and_twice_alike(tmp_path: Path) -> None:
    stage = tmp_path / "ppo"
    stage.mkdir()
    rows = [{"step": step, "ppo/kl": 0.1 * step, "ppo/score": 2.0 * step} for step in (1, 2)]
    lines = [json.dumps(row | {run_plots.TRAINED: row["step"] / 5}) for row in rows]
    (stage / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    cell = {"mean": 0.4, "low": 0.2, "high": 0.5}
    summary = {"models": {"base": {"form": cell}, "ppo": {"reward": cell, "kl_to_sft": cell}}}
    stages = {"ppo": ("ppo", stage), "dpo": ("dpo", tmp_path / "none")}
    folder = tmp_path / "plots"
    run_plots.write(summary, stages, folder)
    first = {path.name: path.read_bytes() for path in folder.iterdir()}
    assert set(first) == {"ppo_score.svg", "ppo_kl.svg", "reward_against_kl.svg"}
    run_plots.write(summary, stages, folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == first
    assert b"ppo in training" in first["reward_against_kl.svg"]


def test_the_way_of_ppo_is_that_of_the_reward_model_alone() -> None:
    """Not of the score that PPO optimises, which has weights and other terms: the axis is the model's own reward."""
    from matplotlib.figure import Figure

    axes = Figure().subplots()
    trajectory = [{"ppo/kl": kl, "ppo/score": 10 * kl, run_plots.TRAINED: 2 * kl} for kl in (0.0, 1.0)]
    run_plots.reward_against_kl(axes, models={"ppo": point(1.0, 0.5)}, kinds={"ppo": "ppo"}, trajectory=trajectory)
    (way,) = (line for line in axes.get_lines() if line.get_label() == "ppo in training")
    assert np.asarray(way.get_xydata()).tolist() == [[0.0, 0.0], [1.0, 2.0]]


def point(kl: float, reward: float) -> dict[str, dict[str, float]]:
    estimates = {"kl_to_sft": kl, "sampled_reward": reward}
    return {name: {"mean": value, "low": value - 0.1, "high": value + 0.1} for name, value in estimates.items()}


def test_models_of_one_stage_share_a_frontier_that_leaves_out_what_another_beats() -> None:
    from matplotlib.figure import Figure

    models = {
        "base": point(9.0, -3.0),
        "sft": point(0.0, 0.0),
        "ppo": point(1.0, 0.5),
        "ppo-hot": point(4.0, 0.4),
        "ppo-long": point(6.0, 0.9),
        "dpo": point(2.0, 0.3),
    }
    axes = Figure().add_subplot()
    kinds = {name: name.partition("-")[0] for name in models}
    run_plots.reward_against_kl(axes, models=models, kinds=kinds, trajectory=[])
    lines = {str(line.get_label()): line for line in axes.get_lines()}
    assert np.asarray(lines["ppo, frontier"].get_xydata()).tolist() == [[0.0, 0.0], [1.0, 0.5], [6.0, 0.9]]
    assert "dpo, frontier" not in lines  # one model is no frontier
    _, labels = axes.get_legend_handles_labels()
    assert {*labels} == {*models, "ppo, frontier"} - {"base"}  # which is far from all the others
    axes = Figure().add_subplot()
    single = {name: models[name] for name in ("base", "sft", "ppo", "dpo")}
    run_plots.reward_against_kl(axes, models=single, kinds={name: name for name in single}, trajectory=[])
    assert {*axes.get_legend_handles_labels()[1]} == {*single}


def with_texts(losses: dict[str, list[float]], tokens: list[int]) -> Comparison:
    """The sums of the texts' losses by model, of so many tokens each."""
    compared = comparison()
    for answer in compared.answers:
        answer.text_losses.extend(losses[answer.name])
        answer.text_tokens.extend(tokens)
    return compared


def test_a_loss_of_texts_is_a_mean_over_their_tokens_and_of_no_source_of_prompts() -> None:
    compared = with_texts({"base": [20.0, 4.0], "sft": [10.0, 2.0]}, [5, 1])
    assert compared.estimates(0)["base"]["lm_loss"].mean == pytest.approx(4.0)
    assert compared.differences(0)["sft over base"]["lm_loss"].mean == pytest.approx(-2.0)
    assert all("lm_loss" not in part.estimates(0)["sft"] for part in compared.by_source().values())


@pytest.mark.parametrize("loss", [3.3, 0.7])
def test_texts_that_are_lost_alike_leave_nothing_open_however_long_they_are(loss: float) -> None:
    tokens = [1, 480, 17, 33, 480, 2]
    sums = {name: [rate * count for count in tokens] for name, rate in (("base", loss), ("sft", loss / 2))}
    compared = with_texts(sums, tokens)
    for estimate, value in (
        (compared.estimates(0)["base"]["lm_loss"], loss),
        (compared.differences(0)["sft over base"]["lm_loss"], -loss / 2),
    ):
        assert (estimate.mean, estimate.low, estimate.high) == pytest.approx((value, value, value), abs=1e-12)


def test_what_is_asked_twice_is_drawn_together() -> None:
    """Copies of rows make no interval narrower, and change no mean."""
    plain = comparison()
    doubled = [
        Answers(
            name=answer.name,
            texts=answer.texts * 3,
            metrics={name: 3 * values for name, values in answer.metrics.items()},
        )
        for answer in plain.answers
    ]
    copies = Comparison(prompts=3 * plain.prompts, answers=doubled)
    for tables in ((plain.estimates(0), copies.estimates(0)), (plain.differences(0), copies.differences(0))):
        for name, row in tables[0].items():
            once, thrice = row["form"], tables[1][name]["form"]
            assert (thrice.mean, thrice.low, thrice.high) == pytest.approx((once.mean, once.low, once.high))


def test_every_further_policy_is_measured_against_sft_and_against_what_it_varies() -> None:
    compared = comparison()
    main = Answers(name="ppo", texts=list("opqrst"), metrics={"form": [0.5] * 6})
    extra = Answers(name="mine", texts=list("uvwxyz"), metrics={"form": [0.2] * 6})
    answers = [*compared.answers, main, extra]
    whole = Comparison(prompts=compared.prompts, answers=answers, variants={"mine": "ppo"})
    for part in (whole, *whole.by_source().values()):
        differences = part.differences(0)
        assert set(differences) == {"sft over base", "ppo over sft", "mine over sft", "mine over ppo"}
        assert differences["mine over ppo"]["form"].mean == pytest.approx(-0.3)
    assert whole.differences(0)["mine over sft"]["form"].mean == pytest.approx(0.2 - 1.9 / 6)
