"""Names of temporary files can be guessed: whatever somebody has put there keeps what it holds."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from data.records import Message, Origin, Prompt
from data.writing import write
from evaluation.score_file import write_lines
from onebase.errors import DataError
from onebase.files import writing
from onebase.files.disk import DiskError
from onebase.files.writing import atomic_folder, replace_file
from onebase.model.roles import Roles
from onebase.recipe import reader
from onebase.recipe.sections import CheckpointSection
from onebase.run import stages
from onebase.run.checkpoint import Checkpoints
from onebase.tracking import tracker
from sft.recipe import SftRecipe

PROMPT = Prompt((Message("user", "Why?"),), Origin("here", 1))
THEIRS = "their only copy\n" * 9


def shorten(folder: Path) -> None:
    (folder / "metrics.jsonl").write_text("ours and more")
    tracker._cut_back(folder, {"metrics.jsonl": 4})  # pyright: ignore[reportPrivateUsage] - its file is what is tested


def probe(folder: Path) -> None:
    Checkpoints(folder / "checkpoints", CheckpointSection(), recipe={}).probe(4096)


WRITERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "a record": (".stage.json", lambda folder: replace_file(folder / "stage.json", "{}")),
    "rows": (".rows.jsonl", lambda folder: write([PROMPT], folder / "rows.jsonl")),
    "a table": (".rows.parquet", lambda folder: write([PROMPT], folder / "rows.parquet")),
    "scores": (".scores.jsonl", lambda folder: write_lines(iter([{"score": 1.0}]), folder / "scores.jsonl")),
    "metrics cut back": (".metrics.jsonl", shorten),
    "the room for checkpoints": (f".room-{os.getpid()}", probe),
}


@pytest.mark.parametrize("put", [os.symlink, os.link])
@pytest.mark.parametrize(("name", "work"), WRITERS.values(), ids=WRITERS)
def test_nothing_is_written_through_a_link(
    tmp_path: Path, name: str, work: Callable[[Path], object], put: Callable[[Path, Path], None]
) -> None:
    theirs, folder = tmp_path / "theirs.txt", tmp_path / "ours"
    theirs.write_text(THEIRS)
    folder.mkdir()
    place = folder / (name if "room" in name else f"{name}.{os.getpid()}")
    put(theirs, place)
    work(folder)
    assert theirs.read_text() == THEIRS
    assert not os.path.lexists(place)


def test_a_link_that_comes_at_the_very_moment_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "theirs.txt").write_text(THEIRS)
    unlink = Path.unlink

    def quick(path: Path, missing_ok: bool = False) -> None:
        unlink(path, missing_ok)
        path.symlink_to(tmp_path / "theirs.txt")

    (tmp_path / "new").touch()
    monkeypatch.setattr(Path, "unlink", quick)
    with pytest.raises(FileExistsError):
        writing.create_file(tmp_path / "new")
    assert (tmp_path / "theirs.txt").read_text() == THEIRS


@pytest.mark.parametrize("put", [os.symlink, os.link])
@pytest.mark.parametrize("work", [WRITERS["a record"][1], WRITERS["metrics cut back"][1]])
def test_a_link_that_takes_the_place_of_a_new_file_is_not_written_through(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    work: Callable[[Path], object],
    put: Callable[[Path, Path], None],
) -> None:
    (tmp_path / "theirs.txt").write_text(THEIRS)
    create = writing.create_file

    def replaced(path: Path) -> int:
        descriptor = create(path)
        path.unlink()
        put(tmp_path / "theirs.txt", path)
        return descriptor

    monkeypatch.setattr(writing, "create_file", replaced)
    work(tmp_path)
    assert (tmp_path / "theirs.txt").read_text() == THEIRS


@pytest.mark.parametrize("part", ["adapter", "tokenizer"])
def test_a_stage_is_not_handed_over_through_a_link(tmp_path: Path, make_roles: Callable[..., Roles], part: str) -> None:
    theirs, out, roles = tmp_path / "theirs", tmp_path / "sft", make_roles("policy")
    theirs.mkdir()
    (theirs / "adapter_model.safetensors").write_text(THEIRS)
    out.mkdir()
    (out / f".{part}.{os.getpid()}").symlink_to(theirs)
    recipe = reader.read("recipes/smoke/sft.yaml", SftRecipe)
    with pytest.raises(FileExistsError, match=part):
        stages.save_stage(out, stages.Origin(stage="sft", recipe=recipe, base=roles.base), roles, "policy", {})
    assert [path.name for path in theirs.rglob("*")] == ["adapter_model.safetensors"]
    assert (theirs / "adapter_model.safetensors").read_text() == THEIRS
    assert not (out / "adapter").exists()


@pytest.mark.parametrize("work", [WRITERS["rows"][1], WRITERS["scores"][1]])
def test_a_folder_in_the_way_is_told(tmp_path: Path, work: Callable[[Path], object]) -> None:
    for name in ("rows", "scores"):
        (tmp_path / f".{name}.jsonl.{os.getpid()}").mkdir()
    with pytest.raises(DataError, match=r"jsonl: cannot be written \(Is a directory\)"):
        work(tmp_path)


def test_a_disk_that_is_full_is_named_and_nothing_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "summary.json").write_text("before")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(DiskError, match=r"No space left on device: the disk at /\S* has \d+ bytes free"):
        replace_file(tmp_path / "summary.json", "after")
    assert [path.name for path in tmp_path.iterdir()] == ["summary.json"]
    assert (tmp_path / "summary.json").read_text() == "before"


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    (tmp_path / ".out.123").mkdir()  # of a process that was killed
    with pytest.raises(ZeroDivisionError), atomic_folder(tmp_path / "out") as temporary:
        (temporary / "one").write_text("half")
        raise ZeroDivisionError
    assert not any(tmp_path.iterdir())
    with atomic_folder(tmp_path / "out") as temporary:
        (temporary / "inner").mkdir()
        (temporary / "inner" / "one").write_text("whole")
        assert not (tmp_path / "out").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "inner" / "one").read_text() == "whole"


def test_a_folder_that_is_replaced_is_away_for_no_longer_than_a_renaming(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, aside, synced = tmp_path / "best", tmp_path / ".best.old", list[bool]()
    with atomic_folder(target, aside=aside) as temporary:
        (temporary / "one").write_text("old")
    assert not aside.exists()
    sync = writing.sync

    def watched(path: Path) -> None:
        synced.append((target / "one").read_text() == "old")
        sync(path)

    with monkeypatch.context() as patch, atomic_folder(target, aside=aside) as temporary:
        (temporary / "one").write_text("new")
        patch.setattr(writing, "sync", watched)
    # The file, its folder and, after both renamings, the folder around them.
    assert synced == [True, True, False]
    assert [(folder / "one").read_text() for folder in (target, aside)] == ["new", "old"]
