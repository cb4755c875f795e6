"""A finished stage that is started again: nothing to do, unless something else than then would go in today."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onebase.files.writing import hash_file
from onebase.run import record
from pipeline.stages import PARENTS

Stage = Callable[..., tuple[int, str]]
OTHER = "0" * 64


def start_again(run_stage: Stage, parents: Path, stage: str, *overrides: str) -> tuple[int, str]:
    settings = [f"parents.{name}={parents / name}" for name in PARENTS[stage]]
    return run_stage(stage, f"out={parents / stage}", "base.quantization=fp32", *settings, *overrides)


def edit(stage: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads((stage / "stage.json").read_text())
    change(content)
    (stage / "stage.json").write_text(json.dumps(content))


def test_everything_as_it_was_is_nothing_to_do(run_stage: Stage, parents: Path) -> None:
    code, printed = start_again(run_stage, parents, "sft")
    assert code == 0, printed
    assert "finished and verified; nothing to do" in printed


@pytest.mark.parametrize("stage", ["reward", "ppo"])
def test_a_run_that_was_moved_is_nothing_to_do(run_stage: Stage, parents: Path, stage: str) -> None:
    """Its recipe named the parents by the paths of then; they are the same stages."""
    code, printed = start_again(run_stage, parents, stage)
    assert code == 0, printed
    assert "finished and verified; nothing to do" in printed


def test_another_parent_is_told_by_its_path(run_stage: Stage, parents: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(parents / "sft", tmp_path / "other"))
    edit(other, lambda content: content.update(created="later"))
    code, printed = start_again(run_stage, parents, "reward", f"parents.sft={other}")
    assert code == 2, printed
    assert "(parents.sft: it had" in printed and "parent sft: it had" in printed and "--restart" in printed


def test_a_finished_stage_whose_data_is_gone_says_what_to_do(run_stage: Stage, parents: Path, tmp_path: Path) -> None:
    gone = [{"source": str(tmp_path / "gone.jsonl")}]
    edit(parents / "sft", lambda content: content["recipe"].update(data=gone))
    code, printed = start_again(run_stage, parents, "sft", f"data={json.dumps(gone)}")
    assert code == 2, printed
    for words in (
        "is finished and its files are whole",
        "gone.jsonl",
        "Put that back",
        f"parents.sft={parents / 'sft'}",
    ):
        assert words in printed


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda content: content["data"][0].update(sha256=OTHER), "data builtin:tasks"),
        (lambda content: content["data"].pop(), "sources of data: it had"),
        (lambda content: content["base"].update(weights_sha256=OTHER), "base weights: it had 000000000000..."),
        (lambda content: content["base"].update(config_sha256=OTHER), "base configuration"),
        (lambda content: content["tokenizer"].update(template_sha256=OTHER), "chat template or system message"),
        (lambda content: content["tokenizer"].update(pad_id=77), "pad token: it had 77"),
    ],
)
def test_what_went_in_and_is_another_today_is_said(
    run_stage: Stage, parents: Path, change: Callable[[dict[str, Any]], Any], what: str
) -> None:
    edit(parents / "sft", change)
    code, printed = start_again(run_stage, parents, "sft")
    assert code == 2, printed
    assert what in printed
    assert "pass --restart to move it aside and train again" in printed


def test_a_finished_stage_lists_every_file_but_checkpoints_and_wandb(finish_run: Callable[[str], Path]) -> None:
    home = finish_run("fp32")
    for stage in ("sft", "reward", "ppo", "dpo"):
        folder = home / stage
        files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
        kept = {file for file in files if file.partition("/")[0] not in ("checkpoints", "wandb", "best", "ema")}
        listed = record.read(folder).record.files
        assert {file for file in kept if not file.rpartition("/")[2].startswith(".")} - {"stage.json"} == listed.keys()
        assert {"metrics.jsonl", "samples.jsonl", "data/card.json"} <= listed.keys()


def test_an_edited_figure_of_a_parent_is_refused_by_its_child(run_stage: Stage, parents: Path, tmp_path: Path) -> None:
    path = parents / "sft" / "metrics.jsonl"
    path.write_text(path.read_text().replace("sft/loss", "sft/lose", 1))
    code, printed = run_stage("reward", f"parents.sft={parents / 'sft'}")
    assert code == 2, printed
    assert f"{path}: damaged or edited" in printed
    assert not (tmp_path / "out").exists()


def test_a_strangers_adapter_config_is_refused_by_the_child(run_stage: Stage, parents: Path, tmp_path: Path) -> None:
    path = parents / "sft" / "adapter" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "init_lora_weights": "pissa"}))
    edit(parents / "sft", lambda content: content["files"].update({"adapter/adapter_config.json": hash_file(path)}))
    code, printed = run_stage("reward", f"parents.sft={parents / 'sft'}")
    assert code == 2, printed
    assert f"error: {path}: init_lora_weights: found 'pissa'" in printed
    assert "Traceback" not in printed
    assert not (tmp_path / "out").exists()


def test_a_strangers_recipe_without_what_is_read_is_refused_by_key(parents: Path, onebase: Callable[..., Any]) -> None:
    (parents / "rows.jsonl").write_text('{"prompt": "a", "response": "b"}\n')
    for change, key in (
        (lambda content: content["recipe"].pop("train"), "recipe.train"),
        (lambda content: content["recipe"]["base"].update(model=[]), "recipe.base.model"),
    ):
        edit(parents / "reward", change)
        code, _, printed = onebase("score", parents / "reward", parents / "rows.jsonl")
        assert code == 2, printed
        assert f"stage.json: {key}" in printed
