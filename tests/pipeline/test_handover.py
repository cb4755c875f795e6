"""What may be wrong with what one stage hands to the next: exit code 2, a message of its own, nothing written."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from onebase.files.writing import hash_file

Stage = Callable[..., tuple[int, str]]


def refused(result: tuple[int, str], *parts: str, out: Path) -> None:
    code, text = result
    assert code == 2, text
    for words in parts:
        assert words in text, text
    assert "Traceback" not in text
    assert not out.exists(), "something was written"


def edit(stage: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a stage's record as somebody with an editor would."""
    content = json.loads((stage / "stage.json").read_text())
    change(content)
    (stage / "stage.json").write_text(json.dumps(content))


def with_weights(stage: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change an adapter's tensors and let the record agree: only the keys themselves can tell."""
    path = stage / "adapter" / "adapter_model.safetensors"
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path)

    def agree(content: dict[str, Any]) -> None:
        content["files"]["adapter/adapter_model.safetensors"] = hash_file(path)

    edit(stage, agree)


def test_a_base_with_fewer_layers(run_stage: Stage, parents: Path, tiny_base_folder: Path, tmp_path: Path) -> None:
    def fewer(content: dict[str, Any]) -> None:
        content["base"]["hidden_layers"] = 4

    edit(parents / "sft", fewer)
    refused(run_stage("dpo", f"parents.sft={parents / 'sft'}"), "other layers", "expected 4", out=tmp_path / "out")


def test_a_base_with_another_vocabulary(run_stage: Stage, parents: Path, tmp_path: Path) -> None:
    def other(content: dict[str, Any]) -> None:
        content["base"]["vocabulary"] = 999

    edit(parents / "sft", other)
    refused(run_stage("dpo", f"parents.sft={parents / 'sft'}"), "other vocabulary size", "999", out=tmp_path / "out")


def test_changed_special_tokens(run_stage: Stage, parents: Path, tmp_path: Path) -> None:
    def other(content: dict[str, Any]) -> None:
        content["tokenizer"]["stop_ids"] = [1, 2]

    edit(parents / "sft", other)
    refused(run_stage("reward", f"parents.sft={parents / 'sft'}"), "another stop tokens", out=tmp_path / "out")


def test_an_adapter_with_a_missing_key(run_stage: Stage, parents: Path, tmp_path: Path) -> None:
    def fewer(tensors: dict[str, Any]) -> None:
        del tensors[sorted(tensors)[0]]

    with_weights(parents / "sft", fewer)
    result = run_stage("reward", f"parents.sft={parents / 'sft'}")
    refused(result, "does not fit this base", "1 missing key", out=tmp_path / "out")


def test_an_adapter_with_a_surplus_key(run_stage: Stage, parents: Path, tmp_path: Path) -> None:
    def more(tensors: dict[str, Any]) -> None:
        name = sorted(tensors)[0]
        tensors[name.replace("layers.0", "layers.9")] = tensors[name].clone()

    with_weights(parents / "sft", more)
    result = run_stage("reward", f"parents.sft={parents / 'sft'}")
    refused(result, "does not fit this base", "1 surplus key", "layers.9", out=tmp_path / "out")


def test_an_adapter_of_other_shapes(run_stage: Stage, parents: Path, tmp_path: Path) -> None:
    def cut(tensors: dict[str, Any]) -> None:
        name = sorted(tensors)[0]
        tensors[name] = tensors[name][:1].clone()

    with_weights(parents / "sft", cut)
    refused(run_stage("reward", f"parents.sft={parents / 'sft'}"), "expected shape", out=tmp_path / "out")


def test_a_truncated_file(run_stage: Stage, parents: Path, tmp_path: Path) -> None:
    path = parents / "sft" / "adapter" / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])
    result = run_stage("reward", f"parents.sft={parents / 'sft'}")
    refused(result, str(path), "damaged or edited", out=tmp_path / "out")


def test_a_missing_file(run_stage: Stage, parents: Path, tmp_path: Path) -> None:
    (parents / "sft" / "tokenizer" / "tokenizer.json").unlink()
    result = run_stage("reward", f"parents.sft={parents / 'sft'}")
    refused(result, "tokenizer.json", "missing", out=tmp_path / "out")


def test_a_surplus_file_in_the_adapter(run_stage: Stage, parents: Path, tmp_path: Path) -> None:
    (parents / "sft" / "adapter" / "adapter_model.bin").write_bytes(b"x")
    result = run_stage("reward", f"parents.sft={parents / 'sft'}")
    refused(result, "adapter_model.bin", "not part of the stage", out=tmp_path / "out")


def test_an_edited_record_of_a_grandparent(run_stage: Stage, parents: Path, tmp_path: Path) -> None:
    def prettier(content: dict[str, Any]) -> None:
        content["metrics"]["sft/loss"] = 0.0

    edit(parents / "sft", prettier)
    result = run_stage("ppo", f"parents.sft={parents / 'sft'}", f"parents.reward={parents / 'reward'}")
    refused(result, "is not the record that", "trained again or edited", out=tmp_path / "out")


def test_a_record_that_is_no_json(run_stage: Stage, parents: Path, tmp_path: Path) -> None:
    path = parents / "sft" / "stage.json"
    path.write_text(path.read_text()[:200])
    result = run_stage("reward", f"parents.sft={parents / 'sft'}")
    refused(result, "not valid JSON", out=tmp_path / "out")


def test_a_record_of_a_newer_schema(run_stage: Stage, parents: Path, tmp_path: Path) -> None:
    def newer(content: dict[str, Any]) -> None:
        content["schema_version"] = 3

    edit(parents / "sft", newer)
    result = run_stage("reward", f"parents.sft={parents / 'sft'}")
    refused(result, "expected schema version 2, found 3", out=tmp_path / "out")


def test_a_record_with_an_unknown_key(run_stage: Stage, parents: Path, tmp_path: Path) -> None:
    def more(content: dict[str, Any]) -> None:
        content["note"] = "mine"

    edit(parents / "sft", more)
    refused(run_stage("reward", f"parents.sft={parents / 'sft'}"), "note", out=tmp_path / "out")


def test_a_grandparent_that_was_moved(run_stage: Stage, parents: Path, tmp_path: Path) -> None:
    shutil.move(parents / "sft", parents / "elsewhere")
    result = run_stage("ppo", f"parents.sft={parents / 'elsewhere'}", f"parents.reward={parents / 'reward'}")
    refused(result, "its parent 'sft' should be in", "moved or deleted", out=tmp_path / "out")


def test_a_run_that_was_moved_as_a_whole_still_verifies(run_stage: Stage, parents: Path, tmp_path: Path) -> None:
    moved = Path(shutil.move(parents, tmp_path / "elsewhere"))
    from onebase.run import record

    assert record.read(moved / "ppo").record.stage == "ppo"


def test_a_record_that_is_its_own_ancestor(run_stage: Stage, parents: Path, tmp_path: Path) -> None:
    def adopt_itself(content: dict[str, Any]) -> None:
        content["parents"]["sft"]["path"] = "../reward"

    edit(parents / "reward", adopt_itself)
    result = run_stage("ppo", f"parents.sft={parents / 'sft'}", f"parents.reward={parents / 'reward'}")
    refused(result, "is its own ancestor", out=tmp_path / "out")


def test_a_link_that_leads_out_of_the_stage(run_stage: Stage, parents: Path, tmp_path: Path) -> None:
    path = parents / "sft" / "adapter" / "adapter_model.safetensors"
    shutil.move(path, tmp_path / "weights")
    os.symlink(tmp_path / "weights", path)
    result = run_stage("reward", f"parents.sft={parents / 'sft'}")
    refused(result, "leads out of the stage folder", out=tmp_path / "out")
