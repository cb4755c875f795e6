"""Whose folder it is: what a run may write into, and what it leaves alone."""

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onebase.cli.command import Stage, guarded, run_stage
from onebase.errors import CodeError, InputError, RecordError
from onebase.files.disk import as_disk_error
from onebase.files.paths import expanded
from onebase.files.writing import move_aside
from onebase.recipe.sections import CheckpointSection, StageRecipe, TrackSection
from onebase.run import folders
from onebase.run.checkpoint import Checkpoints
from onebase.run.folders import (
    claim,
    is_free,
    require_new,
    require_own,
    require_replaceable,
    require_run,
    require_writable,
    what_follows,
)
from onebase.tracking.tracker import Tracker


def put(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


FOREIGN: dict[str, dict[str, str]] = {
    "another trainer's": {"checkpoints/epoch1.pt": "w", "adapter/my.bin": "a", "metrics.jsonl": "{}\n"},
    "checkpoints named as ours": {"checkpoints/step-00000007/model.pt": "w"},
    "a manifest of something else": {"checkpoints/step-00000007/manifest.json": '{"files": {}, "recipe": "x"}'},
    "a manifest of files that are others": {
        "checkpoints/step-00000007/manifest.json": '{"files": {"a": "00"}, "recipe": "x"}',
        "checkpoints/step-00000007/a": "other",
    },
    "papers": {"chapters/one.txt": "words"},
    "one hidden file": {".notes": ""},
    "somebody's stage.json": {"stage.json": '{"stage": "sft", "name": "theatre"}'},
    "a mark of something else": {".onebase.json": '{"stage": "sft"}', "one.txt": ""},
    "a mark that is no JSON": {".onebase.json": "{", "one.txt": ""},
    "a mark nested deeply": {".onebase.json": "[" * 100_000, "one.txt": ""},
}


@pytest.mark.parametrize("name", FOREIGN)
def test_a_folder_without_a_mark_of_ours_is_refused_and_untouched(tmp_path: Path, name: str) -> None:
    before = contents(put(tmp_path / "theirs", FOREIGN[name]))
    with pytest.raises(InputError, match=r"no run of Onebase: it holds .* Nothing in it was touched"):
        claim(tmp_path / "theirs", "sft", "0")
    assert contents(tmp_path / "theirs") == before


def test_a_new_an_empty_and_an_own_folder_are_taken(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    put(tmp_path / "cut", {"..onebase.json.123": "{"})  # of a process that was killed as it wrote the mark
    for name in ("new", "empty", "cut", "new"):
        claim(tmp_path / name, "sft", "0")
        assert json.loads((tmp_path / name / ".onebase.json").read_text())["stage"] == "sft"


def test_a_run_from_before_the_mark_counts_by_a_checkpoint_that_verifies(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "ppo" / "checkpoints", CheckpointSection(), recipe={})
    saved = checkpoints.save(3, {"x": 1})
    require_own(tmp_path / "ppo", "ppo")
    (saved / "state.json").write_text("{}")
    with pytest.raises(InputError, match="no run of Onebase"):
        require_own(tmp_path / "ppo", "ppo")


@pytest.mark.parametrize("evidence", ["mark", "record"])
def test_the_folder_of_another_stage_is_refused(tmp_path: Path, evidence: str) -> None:
    if evidence == "mark":
        claim(tmp_path / "sft", "sft", "0")
    else:
        put(tmp_path / "sft", {"stage.json": '{"schema_version": 1, "stage": "sft", "recipe": {}, "files": {}}'})
    with pytest.raises(InputError, match="folder of a stage 'sft', and this is stage 'ppo'"):
        require_own(tmp_path / "sft", "ppo")
    with pytest.raises(InputError, match=r"lies in .*sft, the folder of a stage 'sft'"):
        require_own(tmp_path / "sft" / "adapter" / "new", "ppo")


@pytest.mark.parametrize(
    "out", [".", "..", "../..", "/", "", "sub/..", "~", "~/", "file", "file/below", "link", "lost"]
)
def test_what_could_never_be_a_runs_folder_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    home = tmp_path / "a" / "home"
    put(home / "work", {"file": "text", "sub/one": "", "elsewhere/one": ""})
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home / "work")
    Path("link").symlink_to("elsewhere")
    Path("lost").symlink_to("nowhere")
    before = contents(tmp_path)
    with pytest.raises(InputError, match="is the folder above" if out in ("..", "../..", "/") else "Give|Write|needs"):
        claim(expanded(out), "sft", "0")
    assert contents(tmp_path) == before and not Path("nowhere").exists()


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert expanded("~/runs/x") == tmp_path / "runs" / "x"
    for bad in ("~no-such-user/x", "a\0b", "a\udc80"):
        with pytest.raises(InputError):
            expanded(bad)


@pytest.mark.parametrize("name", ["x" * 10_000, "a/" * 5_000 + "b", "y" * 250])
def test_a_path_that_the_system_refuses_is_an_error(tmp_path: Path, name: str) -> None:
    from onebase.run.folders import hold

    with pytest.raises(InputError, match="cannot be written"):
        require_own(tmp_path / name, "sft")
        hold(tmp_path / name)


@pytest.mark.parametrize("name", ["checkpoints", "adapter", "metrics.jsonl", "data"])
def test_an_own_folder_with_a_link_among_its_files_is_refused(tmp_path: Path, name: str) -> None:
    claim(tmp_path / "sft", "sft", "0")
    put(tmp_path / "theirs", {"one": "text"})
    (tmp_path / "sft" / name).symlink_to(tmp_path / "theirs")
    with pytest.raises(InputError, match=rf"{name}: is a link to"):
        require_own(tmp_path / "sft", "sft")


@pytest.mark.parametrize(
    ("files", "accepted"),
    [
        ({}, True),
        ({"chapters/one.txt": ""}, False),
        ({"summary.json": '{"figures": 3}'}, False),
        ({"sft/stage.json": '{"stage": "sft"}'}, False),
        ({"sft/.onebase.json": '{"schema_version": 1, "stage": "sft"}', "notes.txt": ""}, True),
        ({"sft/.onebase.json": '{"schema_version": 1, "stage": "sft"}', "plots/mine.svg": ""}, False),
        ({"summary.json": '{"schema_version": 1, "run": "x", "models": {}}', "plots/reward.svg": ""}, True),
        ({".sft.lock": ""}, True),  # of a first stage that was refused before it had a folder
        ({".sft.lock": "", "notes.txt": ""}, False),
        ({"sft/.onebase.json": '{"schema_version": 1, "stage": "sft"}', "evaluation/metrics.jsonl": ""}, False),
        ({"sft/.onebase.json": '{"schema_version": 1, "stage": "sft"}', "evaluation/responses/a.json": ""}, True),
    ],
)
def test_a_comparison_goes_into_a_runs_folder_only(tmp_path: Path, files: dict[str, str], accepted: bool) -> None:
    before = contents(put(tmp_path / "run", files))
    if accepted:
        require_run(tmp_path / "run")
    else:
        with pytest.raises(InputError, match="not the folder of a run of Onebase"):
            require_run(tmp_path / "run")
    assert contents(tmp_path / "run") == before if files else True


def test_a_comparison_goes_into_no_stage_and_into_a_run_from_before_the_mark(tmp_path: Path) -> None:
    claim(tmp_path / "run" / "ppo", "ppo", "0")
    best = '{"schema_version": 1, "stage": "ppo", "recipe": {}, "files": {}}'
    put(tmp_path / "run" / "ppo" / "best", {"stage.json": best})
    with pytest.raises(InputError, match=r"ppo: is the folder of a stage 'ppo'\. Give the run's folder around it"):
        require_run(tmp_path / "run" / "ppo")
    Checkpoints(tmp_path / "old" / "sft" / "checkpoints", CheckpointSection(), recipe={}).save(3, {"x": 1})
    require_run(tmp_path / "old")


def test_files_of_somebody_else_are_not_written_over(tmp_path: Path) -> None:
    names, keys = ("lengths.svg", "tasks.svg"), ("kind", "rows")
    require_replaceable(tmp_path / "new", "card.json", keys, names)
    require_replaceable(put(tmp_path / "papers", {"one.txt": ""}), "card.json", keys, names)
    require_replaceable(put(tmp_path / "own", {"card.json": '{"kind": 1, "rows": 2}'}), "card.json", keys, names)
    for name, text in (("card.json", '{"kind": "birthday"}'), ("card.json", "words"), ("tasks.svg", "<svg/>")):
        with pytest.raises(InputError, match=rf"{name}: is there, and was not written by Onebase"):
            require_replaceable(put(tmp_path / f"theirs-{len(text)}", {name: text}), "card.json", keys, names)
    put(tmp_path, {"out.jsonl": "theirs"})
    (tmp_path / "link.jsonl").symlink_to("nowhere")
    for name in ("out.jsonl", "link.jsonl"):
        with pytest.raises(InputError, match="is there already, and is not written over"):
            require_new(tmp_path / name)
    claim(tmp_path / "sft", "sft", "0")
    with pytest.raises(InputError, match=r"lies in .*sft"):
        require_new(tmp_path / "sft" / "adapter" / "new.jsonl")


def test_what_is_moved_aside_takes_no_place_of_anything(tmp_path: Path) -> None:
    put(tmp_path, {"a": "1", "a.old-1": "mine"})
    (tmp_path / "a.old-2").symlink_to("nowhere")
    assert move_aside(tmp_path / "a").name == "a.old-3"
    assert (tmp_path / "a.old-1").read_text() == "mine"


# --- metrics ------------------------------------------------------------------------------------------------------


def track(folder: Path, kept: dict[str, int] | None = None) -> Tracker:
    folder.mkdir(exist_ok=True)
    return Tracker(folder, "ppo", TrackSection(wandb="off"), {}, kept=kept)


def test_a_resumed_run_cuts_back_its_own_files_only(tmp_path: Path) -> None:
    folder = put(tmp_path / "ppo", {"mine.jsonl": '{"no": "step"}\n', "prices.jsonl": "12345\n"})
    with track(folder) as tracker:
        tracker.log(1, {"ppo/score": 1.0})
        kept = tracker.sizes()
        assert set(kept) == {"metrics.jsonl"}
        tracker.log(2, {"ppo/score": 2.0})
        tracker.table("samples", ["prompt"], [["after the checkpoint"]], step=2)
    # As a checkpoint from before the list knew it: every file of the folder.
    with track(folder, {**kept, "prices.jsonl": 2}):
        pass
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()] == [1]
    assert (folder / "mine.jsonl").read_text() == '{"no": "step"}\n'
    assert (folder / "prices.jsonl").read_text() == "12345\n"
    assert "after the checkpoint" in (folder / "samples.jsonl.old-1").read_text()
    assert not (folder / "samples.jsonl").exists()


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl", "alarms.jsonl"])
def test_a_link_is_neither_cut_nor_written_through(tmp_path: Path, name: str) -> None:
    theirs = put(tmp_path, {"theirs.jsonl": "a long line of theirs\n"}) / "theirs.jsonl"
    folder = tmp_path / "ppo"
    with track(folder) as tracker:
        tracker.log(1, {"ppo/score": 1.0})
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(theirs)
    with pytest.raises(RecordError, match=f"{name}: is a link"):
        track(folder, {name: 3})
    with pytest.raises(RecordError, match=f"{name}: is a link"), track(folder) as tracker:
        tracker.table(name.removesuffix(".jsonl"), ["title"], [["x"]])
    assert theirs.read_text() == "a long line of theirs\n"


def test_another_name_of_the_same_file_keeps_all_of_it(tmp_path: Path) -> None:
    folder = tmp_path / "ppo"
    with track(folder) as tracker:
        tracker.log(1, {"ppo/score": 1.0})
        kept = tracker.sizes()
        tracker.log(2, {"ppo/score": 2.0})
    os.link(folder / "metrics.jsonl", tmp_path / "copy")
    with track(folder, kept):
        pass
    assert len((tmp_path / "copy").read_text().splitlines()) == 2
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1


def test_a_lock_that_is_somebodys_file_is_not_emptied(tmp_path: Path) -> None:
    from onebase.run.folders import hold

    put(tmp_path, {"theirs": "text", ".sft.lock": "my keys"})
    (tmp_path / ".ppo.lock").symlink_to("theirs")
    for stage in ("sft", "ppo"):
        with pytest.raises(InputError, match="is not a lock"):
            hold(tmp_path / stage)
    assert (tmp_path / "theirs").read_text() == "text" and (tmp_path / ".sft.lock").read_text() == "my keys"


def test_checkpoints_leave_alone_what_is_not_theirs(tmp_path: Path) -> None:
    theirs = {"step-9.ckpt": "w", ".step-notes/one": "w", "step-00000000/model.pt": "w", "steps/one": "w"}
    put(tmp_path, theirs)
    (tmp_path / "step-00000009").symlink_to("steps")
    checkpoints = Checkpoints(tmp_path, CheckpointSection(keep=1), recipe={})
    for step in (1, 2, 3):
        checkpoints.save(step, {"x": step})
    newest = Checkpoints(tmp_path, CheckpointSection(keep=1), recipe={}).newest()
    assert newest is not None and newest.step == 3
    assert {name: (tmp_path / name).read_text() for name in theirs} == theirs


# --- endings ------------------------------------------------------------------------------------------------------


def test_what_follows_is_promised_only_where_there_is_a_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "ppo"
    claim(folder, "ppo", "0")
    assert "no checkpoint was written yet" in what_follows(folder, restart=False)
    checkpoints = Checkpoints(folder / "checkpoints", CheckpointSection(), recipe={})
    first, second = checkpoints.save(1, {"x": 1}), checkpoints.save(2, {"x": 2})
    (second / "state.json").write_text("damaged")
    assert what_follows(folder, restart=False) == f"the same command resumes from the last checkpoint, {first}"
    assert what_follows(folder, restart=True).startswith("the same command without --restart resumes")
    shutil.rmtree(first)
    assert "starts again" in what_follows(folder, restart=False)


class Tiny(StageRecipe):
    """A recipe."""


@pytest.mark.parametrize("saved", [False, True])
def test_a_function_at_fault_is_told_with_what_follows(
    tmp_path: Path, saved: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "tiny.yaml").write_text("base: {model: m}\n")
    out = tmp_path / "ppo"

    def fail(recipe: Tiny) -> None:
        claim(out, "ppo", "0")
        if saved:
            Checkpoints(out / "checkpoints", CheckpointSection(), recipe={}).save(1, {"x": 1})
        raise CodeError("reward function 'mine:reward' raised KeyError. Mend the function.")

    code = run_stage("ppo", lambda: Stage(Tiny, fail, fail), tmp_path / "tiny.yaml", [f"out={out}"], False, False)
    last = out / "checkpoints" / "step-00000001"
    follows = (
        f"The same command resumes from the last checkpoint, {last}."
        if saved
        else "No checkpoint was written yet, so the same command starts again."
    )
    message = f"error: reward function 'mine:reward' raised KeyError. Mend the function. {follows}\n"
    assert (code, capsys.readouterr().err) == (2, message)


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EROFS, "Read-only file system: the disk at"),
        (errno.EACCES, "Permission denied"),
        (errno.ENOENT, "No such"),
    ],
)
def test_an_error_of_the_system_names_the_path_and_is_no_traceback(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], number: int, message: str
) -> None:
    error = as_disk_error(OSError(number, os.strerror(number), str(tmp_path / "samples.jsonl")), tmp_path)
    assert error is not None

    def fail(what: Exception) -> Callable[[], None]:
        def work() -> None:
            raise what

        return work

    assert guarded(fail(error)) == 1
    printed = capsys.readouterr().err
    assert message in printed and str(tmp_path) in printed and "Traceback" not in printed and "goes on" not in printed
    elsewhere = OSError(number, os.strerror(number), "/elsewhere/prices.csv")
    assert guarded(fail(elsewhere)) == 1
    printed = capsys.readouterr().err
    assert "/elsewhere/prices.csv" in printed and "Traceback" not in printed


def test_what_tokenizers_says_of_a_full_disk_is_an_error_of_the_disk(tmp_path: Path) -> None:
    """In the words of tokenizers 0.22, which raises a bare Exception; `make faults` fills a real disk."""
    error = as_disk_error(Exception("No space left on device (os error 28)"), tmp_path)
    assert error is not None and error.errno == errno.ENOSPC
    assert as_disk_error(ValueError("as in (os error 28)"), tmp_path) is None


@pytest.mark.parametrize("fault", ["read-only", "forbidden"])
def test_a_folder_that_cannot_be_written_is_refused_at_the_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The lowest call is patched: root may write everywhere. `make faults` mounts a real one."""
    monkeypatch.setattr(folders.os, "access", lambda *_: False)
    whole = os.statvfs(tmp_path)

    class Mounted:
        f_flag = whole.f_flag | os.ST_RDONLY if fault == "read-only" else whole.f_flag & ~os.ST_RDONLY

    monkeypatch.setattr(folders.os, "statvfs", lambda _: Mounted)
    words = "Read-only file system" if fault == "read-only" else "Permission denied"
    with pytest.raises(InputError, match=rf"sft: cannot be written \({words}\)\. Give another"):
        require_writable(tmp_path / "runs" / "sft")
    assert is_free(tmp_path / "runs" / "sft")


def fails(*_: Any, **__: Any) -> None:
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))


def test_a_mark_that_cannot_be_written_is_an_error_of_the_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(folders, "replace_file", fails)
    with pytest.raises(InputError, match=r"cannot be written \(Read-only"):
        claim(tmp_path / "sft", "sft", "0")
