"""`onebase eval reward` and `onebase score` on a finished reward stage, through the real command line."""

import json
import re
import shutil
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from data.chat.conversations import Chat
from data.records import Message, Origin, Prompt
from onebase.model.base import load as load_base
from onebase.model.roles import Roles
from onebase.recipe.sections import BaseSection, ChatSection
from onebase.run import record

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def stage(finish_run: Callable[[str], Path]) -> Path:
    """A finished reward stage. Never write into it."""
    return finish_run("fp32") / "reward"


def write_rows(path: Path, *rows: Any) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def lines_of(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


ROWS = [
    {"id": 7, "prompt": "What is the opposite of cold?", "responses": ["hot", "It is hot, I think.", "blue"]},
    {"prompt": "Name a city.", "response": "Paris"},
    {"prompt": [{"role": "user", "content": "Name a city."}], "responses": ["Paris", ""]},
]


def scored_by_hand(stage: Path, prompt: str, response: str) -> float:
    """The last hidden state of prompt, response and end token under the adapter, times the head: one row alone."""
    stage_read = record.read(stage)
    chat = ChatSection.model_validate(stage_read.record.recipe["chat"])
    base = load_base(BaseSection.model_validate(stage_read.record.recipe["base"]), chat, device=torch.device("cpu"))
    roles, format = Roles(base).load("reward", stage_read.adapter), Chat.of(base, chat)
    ids = [
        *format.prompt_ids(Prompt((Message("user", prompt),), Origin("here", 1))),
        *base.tokenizer.encode(response, add_special_tokens=False),
        base.tokenizer.convert_tokens_to_ids("<|im_end|>"),
    ]
    head = roles.heads["reward"]
    with roles.active("reward"), torch.no_grad():
        hidden = roles.base.model.model(input_ids=torch.tensor([ids])).last_hidden_state[0, -1]
        return float(hidden @ head.weight + head.bias)


# --- onebase score


def test_every_row_comes_back_with_its_scores(onebase: Command, stage: Path, tmp_path: Path) -> None:
    code, out, err = onebase("score", stage, write_rows(tmp_path / "rows.jsonl", *ROWS))
    assert code == 0, err
    scored = lines_of(out)
    assert [{key: row[key] for key in original} for row, original in zip(scored, ROWS, strict=True)] == ROWS
    assert [len(scored[0]["scores"]), len(scored[2]["scores"])] == [3, 2]
    assert scored[1]["score"] == pytest.approx(scored_by_hand(stage, "Name a city.", "Paris"), abs=1e-4)
    assert scored[0]["scores"][1] == pytest.approx(
        scored_by_hand(stage, "What is the opposite of cold?", "It is hot, I think."), abs=1e-4
    )
    assert scored[2]["scores"][0] == pytest.approx(scored[1]["score"], abs=1e-4)
    assert len({*scored[0]["scores"]}) == 3


def test_best_of_n_keeps_the_highest_score_of_each_row(onebase: Command, stage: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "rows.jsonl", *ROWS)
    _, out, _ = onebase("score", stage, path)
    _, best, _ = onebase("score", stage, path, "--best")
    first, single, last = lines_of(out)
    highest = max(first["scores"])
    assert lines_of(best)[0] == {
        "id": 7,
        "prompt": first["prompt"],
        "response": first["responses"][first["scores"].index(highest)],
        "score": highest,
    }
    assert lines_of(best)[1] == single, "of one response the best is that one"
    assert lines_of(best)[2]["score"] == max(last["scores"])


def test_scores_do_not_depend_on_how_many_rows_are_scored_together(
    onebase: Command, stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from evaluation import score_file

    rows = [{"prompt": f"Sort {n}.", "response": "one " * (1 + n % 5)} for n in range(9)]
    path = write_rows(tmp_path / "rows.jsonl", *rows)
    whole = lines_of(onebase("score", stage, path)[1])
    monkeypatch.setattr(score_file, "BLOCK", 2)
    parts = lines_of(onebase("score", stage, path)[1])
    assert [row["prompt"] for row in parts] == [row["prompt"] for row in rows]
    assert [row["score"] for row in parts] == pytest.approx([row["score"] for row in whole], abs=1e-4)


def test_out_is_written_whole_or_not_at_all(onebase: Command, stage: Path, tmp_path: Path) -> None:
    good, bad = write_rows(tmp_path / "good.jsonl", *ROWS), write_rows(tmp_path / "bad.jsonl", *ROWS, {"prompt": "a"})
    out = tmp_path / "new" / "scores.jsonl"
    code, printed, err = onebase("score", stage, bad, "--out", out)
    assert code == 2 and f"{bad}:4" in err and printed == ""
    assert not out.exists() and not list(out.parent.glob(".*"))
    code, printed, err = onebase("score", stage, good, "--out", out)
    assert code == 0 and printed == "" and "3 rows scored" in err
    assert len(lines_of(out.read_text())) == 3
    assert [path.name for path in out.parent.iterdir()] == ["scores.jsonl"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{", "not valid JSON"),
        ("[1]", "expected an object with keys, found list"),
        ({"prompt": "a"}, "'response' or 'responses'"),
        ({"prompt": "a", "response": "b", "responses": ["c"]}, "one of the two"),
        ({"prompt": "a", "response": 3}, "'response' must be text"),
        ({"prompt": "a", "responses": []}, "'responses' must be a list of texts, one at least"),
        ({"prompt": "a", "responses": ["b", None]}, "'responses' must be a list of texts"),
        ({"response": "b"}, "no prompt can be made of"),
        ({"prompt": " ", "response": "b"}, "empty"),
        ({"prompt": "a", "response": "b", "score": 1}, "has a 'score' already"),
        ({"prompt": "a", "response": "word " * 600}, "the model has 512 positions"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(
    onebase: Command, stage: Path, tmp_path: Path, row: Any, message: str
) -> None:
    path = write_rows(tmp_path / "rows.jsonl", ROWS[1], "", row)
    code, _, err = onebase("score", stage, path)
    assert code == 2
    assert f"{path}:3" in err and message in err and "Traceback" not in err


def test_a_file_without_rows_is_an_error(onebase: Command, stage: Path, tmp_path: Path) -> None:
    code, _, err = onebase("score", stage, write_rows(tmp_path / "rows.jsonl", ""))
    assert code == 2 and "no rows" in err
    code, _, err = onebase("score", stage, tmp_path / "nowhere.jsonl")
    assert code == 2 and "there is no file" in err
    code, _, err = onebase("score", stage, write_rows(tmp_path / "rows.csv", "prompt,response", "a,b"))
    assert code == 2 and "reads .jsonl files only" in err


def test_only_a_reward_stage_scores(onebase: Command, stage: Path, tmp_path: Path) -> None:
    code, _, err = onebase("score", stage.parent / "sft", write_rows(tmp_path / "rows.jsonl", *ROWS))
    assert code == 2 and "expected a run of stage 'reward', found stage 'sft'" in err


def test_a_damaged_head_is_found_before_anything_is_scored(onebase: Command, stage: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(stage.parent, tmp_path / "run"))
    head = run / "reward" / "adapter" / "head.safetensors"
    content = bytearray(head.read_bytes())
    content[-1] ^= 1
    head.write_bytes(bytes(content))
    code, out, err = onebase("score", run / "reward", write_rows(tmp_path / "rows.jsonl", *ROWS))
    assert code == 2 and out == "" and "damaged or edited" in err


# --- onebase eval reward


def test_the_command_gives_the_report_that_the_stage_ended_with(onebase: Command, stage: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    code, printed, err = onebase("eval", "reward", stage, "--out", out)
    assert code == 0, err
    now, then = json.loads((out / "report.json").read_text()), json.loads((stage / "report.json").read_text())
    assert {key: now[key] for key in then} == then, "the same machine, threads and batches: the same bits"
    assert now["stage_sha256"] == record.read(stage).sha256
    assert now["data"][0]["source"] == "builtin:tasks"
    names = {"report.json", "reliability.svg"}
    assert {path.name for path in out.iterdir()} == names
    for path in out.glob("*.svg"):
        assert ElementTree.parse(path).getroot().tag.endswith("svg")
    assert re.search(r"all pairs\s+│\s+0\.\d\d \[", printed) and "bag of words" in printed


def test_the_stages_metrics_are_those_of_its_report(stage: Path) -> None:
    metrics = record.read(stage).record.metrics
    report = json.loads((stage / "report.json").read_text())
    for key, name in (("mean", "eval_accuracy"), ("low", "eval_accuracy_low"), ("high", "eval_accuracy_high")):
        assert metrics[f"reward/{name}"] == pytest.approx(report["accuracy"][key], abs=1e-6)
    # Bradley-Terry's loss is the log loss of sigmoid(margin).
    assert metrics["reward/eval_loss"] == pytest.approx(report["calibration"]["log_loss"]["mean"], abs=1e-5)


def test_every_section_of_a_builtin_report_is_filled_but_labelers(stage: Path) -> None:
    report = json.loads((stage / "report.json").read_text())
    empty = [name for name, section in report.items() if isinstance(section, dict) and "no_data" in section]
    assert sorted(empty) == ["ensemble", "held_out_labelers"], "one reward model, and nobody is held out"
    assert report["agreement"]["by_labeler"] == {"no_data": "the prompts do not say who ranked them"}
    assert set(report["by_source"]) == {"builtin:tasks/heldout-families", "builtin:tasks/heldout-templates"}
    assert len(report["by_task"]) > 1 and not any(task.isdigit() for task in report["by_task"])
    assert "gold" in report["by_label"]
    assert report["demonstrations"]["mean_score"] == pytest.approx(0, abs=1e-4)
    assert report["demonstrations"]["beats_ranked_responses_of_its_prompt"]["prompts"] == 6
    assert set(report["baselines"]) == {"longer wins", "shorter wins", "random", "bag of words"}
    assert all("accuracy" in baseline for baseline in report["baselines"].values())


def test_other_rankings_than_the_recipes(onebase: Command, stage: Path, tmp_path: Path) -> None:
    rows = [
        {"prompt": "Name a city.", "responses": ["Paris", "Rome", "a dog"], "tiers": [0, 0, 1]},
        {"prompt": "What is the opposite of cold?", "chosen": "hot", "rejected": "colder, I would say"},
    ]
    path, out = write_rows(tmp_path / "mine.jsonl", *rows), tmp_path / "report"
    code, _, err = onebase("eval", "reward", stage, "--data", path, "--out", out)
    assert code == 0, err
    report = json.loads((out / "report.json").read_text())
    assert (report["prompts"], report["pairs"]) == (2, 3)
    assert set(report["by_source"]) == {str(path)}
    assert "no_data" in report["by_label"] and "no_data" in report["by_task"]
    code, _, err = onebase(
        *("eval", "reward", stage, "--out", out),
        *("--data", "builtin:tasks", "--split", "heldout-families", "--rows", 3),
    )
    assert code == 0, err
    assert json.loads((out / "report.json").read_text())["prompts"] == 3


def test_a_report_never_goes_into_the_stage_folder(onebase: Command, stage: Path) -> None:
    before = sorted(path for path in stage.rglob("*") if path.is_file())
    for out in (stage, stage / "adapter" / "report"):
        code, _, err = onebase("eval", "reward", stage, "--out", out)
        assert code == 2 and "lies in" in err
    assert sorted(path for path in stage.rglob("*") if path.is_file()) == before


def test_a_broken_ranking_is_named_by_file_and_line(onebase: Command, stage: Path, tmp_path: Path) -> None:
    path = write_rows(tmp_path / "mine.jsonl", {"prompt": "a", "responses": ["b", "c"], "tiers": [0, 0]})
    out = tmp_path / "report"
    code, _, err = onebase("eval", "reward", stage, "--data", path, "--out", out)
    assert code == 2 and f"{path}:1" in err and "all responses are tied" in err
    assert not out.exists()


def test_split_without_data_is_refused(onebase: Command, stage: Path, tmp_path: Path) -> None:
    code, _, err = onebase("eval", "reward", stage, "--rows", 3, "--out", tmp_path / "report")
    assert code == 2 and "--data" in err


# --- the recipe's loss


@pytest.mark.parametrize("kind", ["plackett-luce", "rao-kupper", "davidson"])
def test_another_loss_trains_another_reward_model(
    stage: Path, tiny_base_folder: Path, tmp_path: Path, kind: str
) -> None:
    """One step under each loss: another loss and another gradient than Bradley-Terry's. Weights are not compared:
    Adam's first step hardly depends on how long a gradient is, and some of these point the same way."""
    from onebase.recipe import reader
    from reward.recipe import RewardRecipe
    from reward.train import run

    seen = []
    for name, loss in (("bt", "bradley-terry"), ("other", kind)):
        settings = [f"base.model={tiny_base_folder}", f"parents.sft={stage.parent / 'sft'}", "track.wandb=off"]
        small = ["data.0.rows=4", "evaluation.rankings.0.rows=2", "evaluation.demonstrations.0.rows=2"]
        out = tmp_path / name
        overrides = [*settings, *small, f"loss.kind={loss}", f"out={out}"]
        run(reader.read("recipes/smoke/reward.yaml", RewardRecipe, overrides))
        rows = map(json.loads, (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines())
        seen.append(next(row for row in rows if "reward/loss" in row))
    for metric in ("reward/loss", "reward/grad_norm"):
        assert abs(seen[0][metric] - seen[1][metric]) > 1e-3 * abs(seen[0][metric])


def test_a_centring_penalty_adds_its_weight_times_the_squared_sum() -> None:
    from reward.recipe import LossSection
    from reward.train import choose_loss

    scores, tiers = torch.tensor([2.0, 1.0]), torch.tensor([0, 1])
    plain, centred = (choose_loss(LossSection(centering=weight))(scores, tiers) for weight in (0.0, 0.01))
    assert float(centred - plain) == pytest.approx(0.09, abs=1e-6)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["loss.kind=davidson", "loss.margin=0.5"], "'margin' is read by kind: bradley-terry only"),
        (["loss.theta=2.0"], "'theta' is read by kind: rao-kupper only"),
        (["loss.kind=rao-kupper", "loss.theta=1.0"], "loss.theta"),
        (["loss.kind=davidson", "loss.nu=0.0"], "loss.nu"),
        (["loss.label_smoothing=0.5"], "loss.label_smoothing"),
        (["loss.kind=listnet"], "loss.kind"),
        (["loss.margn=1"], "did you mean 'margin'?"),
    ],
)
def test_a_loss_section_that_would_not_be_read_or_makes_no_sense_is_refused(overrides: list[str], message: str) -> None:
    from onebase.errors import RecipeError
    from onebase.recipe import reader
    from reward.recipe import RewardRecipe

    with pytest.raises(RecipeError) as caught:
        reader.read("recipes/smoke/reward.yaml", RewardRecipe, overrides)
    assert message in str(caught.value)
