"""Records, and folders, as a stranger may make them: refused quickly, with the file's name, and nothing followed."""

import hashlib
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from evaluation.compare.summary import lineage
from onebase.errors import RecordError
from onebase.run import checkout, record, same_chat
from onebase.run.same_chat import ChatTexts
from onebase.terminal import printable

Content = dict[str, Any]
FILES = {
    "adapter/adapter_config.json": "{}",
    "adapter/adapter_model.safetensors": "weights",
    "tokenizer/tokenizer.json": "{}",
    "metrics.jsonl": '{"step": 1, "sft/loss": 2.5}\n',
    "data/card.json": '{"rows": 8}',
}


def content_of(stage: Path, parents: dict[str, Path]) -> Content:
    """A record as the format's page has it, made without the code that reads it."""
    hashes = {name: hashlib.sha256((stage / name).read_bytes()).hexdigest() for name in FILES}
    links = {
        name: {
            "path": os.path.relpath(folder, stage),
            "sha256": hashlib.sha256((folder / "stage.json").read_bytes()).hexdigest(),
        }
        for name, folder in parents.items()
    }
    base = {"model": "m", "revision": None, "quantization": "fp32", "config_sha256": "c", "weights_sha256": "w"}
    return {
        "schema_version": 2,
        "stage": "sft",
        "created": "2026-01-01T00:00:00+00:00",
        "base": {**base, "vocabulary": 400, "hidden_layers": 2},
        "tokenizer": {"tokenizer_sha256": "t", "template_sha256": "t", "pad_id": 0, "stop_ids": [2]},
        "files": hashes,
        "parents": links,
        "recipe": {"seed": 0},
        "data": [],
        "git": {"commit": None, "dirty": None},
        "versions": {},
        "metrics": {"sft/loss": 2.5},
        "resources": {"seconds": 1.0, "peak_rss_bytes": 1},
    }


def make_stage(
    stage: Path, parents: dict[str, Path] | None = None, change: Callable[[Content], Any] | None = None
) -> Path:
    for name, text in FILES.items():
        (stage / name).parent.mkdir(parents=True, exist_ok=True)
        (stage / name).write_text(text)
    content = content_of(stage, parents or {})
    if change is not None:
        change(content)
    (stage / "stage.json").write_text(json.dumps(content))
    return stage


def refused(stage: Path, *parts: str) -> None:
    with pytest.raises(RecordError) as caught:
        record.read(stage)
    for words in parts:
        assert words in str(caught.value)


def test_a_sound_folder_verifies(tmp_path: Path) -> None:
    assert record.read(make_stage(tmp_path / "sft")).record.metrics == {"sft/loss": 2.5}


@pytest.mark.parametrize("name", ["metrics.jsonl", "data/card.json", "tokenizer/tokenizer.json"])
def test_one_edited_figure_is_told(tmp_path: Path, name: str) -> None:
    stage = make_stage(tmp_path / "sft")
    (stage / name).write_text(FILES[name].replace("2.5", "0.5").replace("8", "9").replace("{}", "{ }"))
    refused(stage, str(stage / name), "damaged or edited")


@pytest.mark.parametrize(
    "name", ["tokenizer/added_tokens.json", "tokenizer/more/chat_template.jinja", "adapter/adapter_model.bin"]
)
def test_a_file_that_a_library_would_read_beside_those_listed_is_refused(tmp_path: Path, name: str) -> None:
    stage = make_stage(tmp_path / "sft")
    (stage / name).parent.mkdir(exist_ok=True)
    (stage / name).write_text("{}")
    refused(stage, str(stage / name), "not part of the stage")


@pytest.mark.parametrize("name", ["adapter/.DS_Store", "adapter/._adapter_config.json", "tokenizer/.cache/x.json"])
def test_hidden_files_that_copying_leaves_are_passed_over(tmp_path: Path, name: str) -> None:
    stage = make_stage(tmp_path / "sft")
    (stage / name).parent.mkdir(exist_ok=True)
    (stage / name).write_text("{}")
    assert record.read(stage).record.stage == "sft"


@pytest.mark.parametrize("chat", ["Be brief.", None, {"system": 7}, ["system"]])
def test_a_strangers_chat_is_compared_whatever_it_is(tmp_path: Path, chat: Any) -> None:
    """Where it is no system message, the two templates' hashes are told."""
    stage = record.read(make_stage(tmp_path / "sft", change=lambda content: content["recipe"].update(chat=chat)))
    other = stage.record.tokenizer.model_copy(update={"template_sha256": "u"})
    ours = ChatTexts(system="Answer.", template=None, place="base")
    with pytest.raises(RecordError, match=r"chat(\.system)?: .*sft was trained with another"):
        same_chat.require(stage, other, lambda: ours)


def test_links_are_not_followed(tmp_path: Path) -> None:
    elsewhere = make_stage(tmp_path / "elsewhere")
    for place in ("tokenizer/linked", "adapter/linked.json"):
        stage = make_stage(tmp_path / place.replace("/", "-"))
        os.symlink(elsewhere / "tokenizer", stage / place)
        refused(stage, str(stage / place), "not part of the stage")
    stage = make_stage(tmp_path / "linked-folder")
    (stage / "data").rename(tmp_path / "data")
    os.symlink(tmp_path / "data", stage / "data")
    refused(stage, str(stage / "data"), "through a link")
    stage = make_stage(tmp_path / "linked-record")
    (stage / "stage.json").rename(stage / "other.json")
    os.symlink(stage / "other.json", stage / "stage.json")
    refused(stage, str(stage / "stage.json"), "is a link")


def test_a_stage_folder_behind_a_link_is_as_good_as_any(tmp_path: Path) -> None:
    os.symlink(make_stage(tmp_path / "sft"), tmp_path / "newest")
    assert record.read(tmp_path / "newest").record.stage == "sft"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"schema_version": 2, "x": ' + "[" * 100_000 + "]" * 100_000 + "}", "nested too deeply"),
        ('{"schema_version": 2, "x": ' + '{"a": ' * 200 + "0" + "}" * 201, "nested more than 64 deep"),
        ('{"schema_version": 2, "stage": "sft", "stage": "ppo"}', "'stage' is given twice"),
        ('{"schema_version": 2, "x": NaN}', "NaN is not JSON"),
        ('{"schema_version": 2, "x": 1e999}', "a number is too large"),
        ('{"schema_version": 2, "x": ' + "9" * 5000 + "}", "not valid JSON"),
        ('{"schema_version": 2, "stage": "\\ud800"}', "half of a surrogate pair"),
        ('["schema_version"]', "it is a list"),
        ('{"schema_version": true}', "expected schema version 2, found True"),
        (" " * (8 * 2**20) + "{}", "8,388,608 are read"),
    ],
)
def test_a_record_that_is_no_record_is_refused_by_name(tmp_path: Path, text: str, message: str) -> None:
    stage = make_stage(tmp_path / "sft")
    (stage / "stage.json").write_text(text)
    refused(stage, str(stage / "stage.json"), message)


def test_a_pipe_in_the_place_of_a_record_is_not_waited_for(tmp_path: Path) -> None:
    stage = make_stage(tmp_path / "sft")
    (stage / "stage.json").unlink()
    os.mkfifo(stage / "stage.json")
    refused(stage, str(stage / "stage.json"), "not a plain file")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adapter/" + "x" * 10_000, "10,008 letters"),
        ("a/" * 3000 + "x", "6,001 letters"),
        ("../sft/metrics.jsonl", "leads out of the stage folder"),
        ("/etc/passwd", "leads out of the stage folder"),
        ("adapter//adapter_config.json", "leads out of the stage folder"),
        ("./metrics.jsonl", "leads out of the stage folder"),
        ("a\0b", "leads out of the stage folder"),
    ],
)
def test_a_listed_name_that_is_none_is_refused(tmp_path: Path, name: str, message: str) -> None:
    stage = make_stage(tmp_path / "sft", change=lambda content: content["files"].update({name: "0" * 64}))
    refused(stage, str(stage / "stage.json"), message)


def test_a_record_that_lists_no_adapter_is_refused(tmp_path: Path) -> None:
    stage = make_stage(tmp_path / "sft", change=lambda content: content["files"].clear())
    refused(stage, "does not list adapter/adapter_config.json")


@pytest.mark.parametrize("path", ["x" * 10_000, "../" * 5000, "a\0b"])
def test_a_parent_that_cannot_be_a_folder_is_refused_in_few_words(tmp_path: Path, path: str) -> None:
    sft = make_stage(tmp_path / "sft")
    stage = make_stage(tmp_path / "ppo", {"sft": sft}, lambda content: content["parents"]["sft"].update({"path": path}))
    with pytest.raises(RecordError, match="its parent 'sft' should be in") as caught:
        record.read(stage)
    assert len(str(caught.value)) < 1000


def test_each_ancestor_is_verified_once_however_many_ways_lead_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """12 stages, each linked twice to the one before: 2^12 ways to the first."""
    stage = make_stage(tmp_path / "0")
    for number in range(1, 13):
        stage = make_stage(tmp_path / str(number), {"left": stage, "right": stage})
    parsed: list[Path] = []
    parse = record._parse
    monkeypatch.setattr(record, "_parse", lambda folder, stage: parsed.append(folder) or parse(folder, stage))
    stage_read = record.read(stage)
    assert len(parsed) == 13
    assert len(lineage({"ppo": stage_read}, tmp_path)["records"]) == 13


def test_a_chain_without_end_is_cut_short(tmp_path: Path) -> None:
    stage = make_stage(tmp_path / "0")
    for number in range(1, 120):
        stage = make_stage(tmp_path / str(number), {"sft": stage})
    refused(stage, "more ancestors than any run has")


def test_record_text_cannot_command_a_terminal(tmp_path: Path) -> None:
    text = "sft\x1b[2J\x9b31m\u202egnp.exe\r\x07\x7f"
    assert printable(text) == "sft\\x1b[2J\\x9b31m\\u202egnp.exe\\r\\x07\\x7f"
    assert printable("ä, 漢字, a\tb\nc") == "ä, 漢字, a\tb\nc"


def test_verify_prints_no_control_character_of_a_record(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from pipeline.cli import app

    stage = make_stage(tmp_path / "sft", change=lambda content: content.update(stage="sft\x1b[2J\u202e"))
    assert not app(["verify", str(stage)], standalone_mode=False)
    odd = make_stage(tmp_path / "odd", change=lambda content: content.update({"\x1b]0;title\x07": 1}))
    assert app(["verify", str(odd)], standalone_mode=False) == 2
    printed = capsys.readouterr()
    assert "stage 'sft\\x1b[2J\\u202e'" in printed.out
    assert not {"\x1b", "\x07", "\u202e"} & {*printed.out, *printed.err}
    assert "title" in printed.err


def test_the_commit_of_a_checkout_is_known() -> None:
    if (checkout.HOME / ".git").exists():
        assert re.fullmatch("[0-9a-f]{40}", checkout.git_state().commit or "")
    assert (checkout.HOME / "pyproject.toml").is_file()
