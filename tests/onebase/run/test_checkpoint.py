"""A checkpoint verifies whole or does not count; what it holds comes back bit for bit."""

import contextlib
import errno
import hashlib
import json
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from safetensors import SafetensorError

from onebase.errors import RecordError
from onebase.files.disk import DiskError
from onebase.recipe.sections import CheckpointSection
from onebase.run import checkpoint as checkpoints
from onebase.run.checkpoint import Checkpoints
from onebase.seeding import random_state, set_random_state

RECIPE = {"seed": 0, "train": {"learning_rate": 1e-4}, "out": "here"}


def make(folder: Path, *, keep: int = 2, recipe: dict[str, Any] = RECIPE) -> Checkpoints:
    return Checkpoints(folder, CheckpointSection(every_steps=1, every_minutes=None, keep=keep), recipe=recipe)


def state(number: int) -> dict[str, Any]:
    return {"weights": [torch.full((3,), float(number))], "step": number, "nested": {0: ("a", 1.5, None, True)}}


def test_everything_that_was_saved_comes_back_with_its_types(tmp_path: Path) -> None:
    linear = torch.nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(linear.parameters(), lr=1e-3)
    linear(torch.randn(2, 4)).sum().backward()
    optimizer.step()
    content = {"optimizer": optimizer.state_dict(), "random": random_state(), "tiny": 1e-320, "third": 1 / 3}
    make(tmp_path).save(7, content)
    newest = make(tmp_path).newest()
    assert newest is not None and newest.step == 7
    assert newest.state["third"] == 1 / 3 and newest.state["tiny"] == 1e-320
    assert newest.state["random"]["python"] == content["random"]["python"]
    fresh = torch.optim.AdamW(linear.parameters(), lr=9.0)
    fresh.load_state_dict(newest.state["optimizer"])
    for state, other in zip(
        fresh.state_dict()["state"].values(), optimizer.state_dict()["state"].values(), strict=True
    ):
        assert all(torch.equal(state[name], other[name]) for name in other)
    assert fresh.param_groups[0]["lr"] == 1e-3


def test_random_numbers_go_on_where_they_were(tmp_path: Path) -> None:
    make(tmp_path).save(1, random_state())
    expected = (random.random(), float(numpy.random.rand()), torch.rand(3).tolist())
    newest = make(tmp_path).newest()
    assert newest is not None
    set_random_state(newest.state)
    assert (random.random(), float(numpy.random.rand()), torch.rand(3).tolist()) == expected


def test_the_newest_is_taken_and_older_ones_are_rotated_out(tmp_path: Path) -> None:
    saved = make(tmp_path, keep=2)
    for number in range(1, 6):
        saved.save(number, state(number))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000005"]
    newest = saved.newest()
    assert newest is not None and newest.step == 5
    assert torch.equal(newest.state["weights"][0], torch.full((3,), 5.0))
    assert newest.state["nested"] == {0: ("a", 1.5, None, True)}


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["flipped", "missing", "truncated"])
def test_a_damaged_checkpoint_is_passed_over_and_named(
    tmp_path: Path, name: str, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = make(tmp_path)
    saved.save(1, state(1))
    saved.save(2, state(2))
    path = tmp_path / "step-00000002" / name
    if damage == "flipped":
        flip(path)
    elif damage == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-20])
    try:
        newest = saved.newest()
    except RecordError as error:
        # A flipped bit in the manifest may change the recipe's hash and leave it valid JSON: refused, not passed over.
        assert name == "manifest.json" and damage == "flipped" and "another recipe" in str(error)
        return
    assert newest is not None and newest.step == 1
    assert "step-00000002" in capsys.readouterr().err


def test_no_checkpoint_that_verifies_is_an_error_and_no_fresh_start(tmp_path: Path) -> None:
    make(tmp_path).save(1, state(1))
    flip(tmp_path / "step-00000001" / "tensors.safetensors")
    with pytest.raises(RecordError, match=r"none verifies.*--restart"):
        make(tmp_path).newest()


def test_another_recipe_does_not_go_on_from_here_but_another_folder_does(tmp_path: Path) -> None:
    make(tmp_path).save(1, state(1))
    assert make(tmp_path, recipe={**RECIPE, "out": "elsewhere"}).newest() is not None
    with pytest.raises(RecordError, match=r"another recipe.*: seed: it had .*, this one says 11\. Give"):
        make(tmp_path, recipe={**RECIPE, "seed": 11}).newest()
    with pytest.raises(RecordError, match=r": kl\.weight: it had nothing|kl: it had nothing, this one says"):
        make(tmp_path, recipe={**RECIPE, "kl": {"weight": 0.1}}).newest()


def test_a_manifest_whose_recipe_was_edited_does_not_count(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    saved = make(tmp_path)
    saved.save(1, state(1))
    saved.save(2, state(2))
    path = tmp_path / "step-00000002" / "manifest.json"
    path.write_text(path.read_text().replace('"settings"', '"sittings"'))
    newest = saved.newest()
    assert newest is not None and newest.step == 1
    assert "its recipe is not the one" in capsys.readouterr().err


@pytest.mark.parametrize(("owner", "call"), [(checkpoints, "save_file"), (os, "fsync"), (os, "rename")])
def test_a_full_disk_leaves_the_last_checkpoint_and_no_rubbish(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, owner: Any, call: str
) -> None:
    saved = make(tmp_path)
    saved.save(1, state(1))

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(owner, call, full)
    with pytest.raises(DiskError, match=r"No space left .* has \d+ bytes free, and [1-9]\d* bytes were to be written"):
        saved.save(2, state(2))
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    newest = saved.newest()
    assert newest is not None and newest.step == 1


def test_stale_temporaries_are_swept(tmp_path: Path) -> None:
    make(tmp_path).save(1, state(1))
    (tmp_path / ".step-00000002.123").mkdir()
    (tmp_path / ".step-00000002.123" / "tensors.safetensors").write_text("half")
    make(tmp_path).newest()
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_a_checkpoint_is_json_and_safetensors_only(tmp_path: Path) -> None:
    folder = make(tmp_path).save(1, {"random": random_state()})
    assert sorted(path.suffix for path in folder.iterdir()) == [".json", ".json", ".safetensors"]
    json.loads((folder / "state.json").read_text())
    with pytest.raises(TypeError, match="cannot hold a set"):
        make(tmp_path).save(2, {"no": {1, 2}})


def test_saves_are_due_by_steps_and_by_minutes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr(checkpoints.time, "monotonic", lambda: now[0])
    by_steps = Checkpoints(tmp_path, CheckpointSection(every_steps=3, every_minutes=None), recipe={})
    assert [by_steps.due(step) for step in range(1, 7)] == [False, False, True, False, False, True]
    by_minutes = Checkpoints(tmp_path, CheckpointSection(every_minutes=2.0), recipe={})
    assert not by_minutes.due(1)
    now[0] += 121
    assert by_minutes.due(2)
    by_minutes.save(2, state(2))
    assert not by_minutes.due(3)


def test_what_safetensors_says_of_a_full_disk_is_an_error_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the words of safetensors 0.8, which raises no OSError; `make faults` fills a real disk."""
    saved = make(tmp_path)
    saved.save(1, state(1))

    def full(*_: Any, **__: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoints, "save_file", full)
    with pytest.raises(
        DiskError, match=r"the disk at /.* has \d+ bytes free, and 12 bytes were to be written"
    ) as caught:
        saved.save(2, state(2))
    assert caught.value.errno == errno.ENOSPC
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]


def test_saving_a_step_again_never_leaves_a_moment_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved = make(tmp_path, keep=1)
    saved.save(1, state(1))

    rename = os.rename

    def cut_short(source: Path, target: Path) -> None:
        """Right before a checkpoint gets its name: by then the one before it may have lost it."""
        if target.name == "step-00000001":
            raise KeyboardInterrupt
        rename(source, target)

    monkeypatch.setattr(checkpoints.os, "rename", cut_short)
    with contextlib.suppress(KeyboardInterrupt):
        saved.save(1, state(1))
    monkeypatch.undo()
    newest = make(tmp_path, keep=1).newest()
    assert newest is not None and newest.step == 1


def test_a_damaged_checkpoint_is_replaced_when_its_step_comes_again(tmp_path: Path) -> None:
    saved = make(tmp_path)
    flip(saved.save(1, state(1)) / "tensors.safetensors")
    saved.save(1, state(1))
    newest = saved.newest()
    assert newest is not None and torch.equal(newest.state["weights"][0], torch.ones(3))


@pytest.mark.parametrize("keep", [1, 2])
def test_a_damaged_newer_checkpoint_does_not_push_out_sound_ones(tmp_path: Path, keep: int) -> None:
    section = CheckpointSection(keep=keep)
    saved = Checkpoints(tmp_path, section, recipe=RECIPE)
    for step in (10, 20, 30)[-2:] if keep == 1 else (10, 20, 30):
        Checkpoints(tmp_path, CheckpointSection(keep=9), recipe=RECIPE).save(step, state(step))
    flip(tmp_path / "step-00000030" / "tensors.safetensors")
    newest = saved.newest()
    assert newest is not None and newest.step == 20
    saved.save(22, state(22))
    kept = sorted(path.name for path in tmp_path.glob("step-*"))
    assert kept == ["step-00000020", "step-00000022"][-keep:]
    assert (tmp_path / "damaged-step-00000030").is_dir()
    newest = saved.newest()
    assert newest is not None and newest.step == 22


def test_a_probe_for_room_leaves_nothing_even_where_it_is_cut_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: Any) -> None:
        assert not list(tmp_path.rglob(".room*")), "a kill here would leave a file as large as the room"
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "posix_fallocate", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path).probe(1 << 20)


def test_numbers_that_are_not_finite_come_back(tmp_path: Path) -> None:
    saved = make(tmp_path)
    saved.save(1, {"metrics": {"loss": float("nan"), "norm": float("inf")}})
    newest = saved.newest()
    assert newest is not None
    assert str(newest.state["metrics"]["loss"]) == "nan"
    assert newest.state["metrics"]["norm"] == float("inf")


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    path = folder / checkpoints.MANIFEST
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["files"].pop("state.json"), "does not list state.json"),
        (lambda content: content["files"].clear(), "does not list state.json"),
        (lambda content: content["files"].update({"../step-00000001/state.json": "0"}), "is not a file of this folder"),
        (lambda content: content.update(step=9), "is of step 9"),
        (lambda content: content.update(step="2"), "skipped"),
        (lambda content: content.update(files=["state.json"]), "skipped"),
        (lambda content: content.pop("files"), "skipped"),
    ],
)
def test_a_manifest_that_lies_is_passed_over(
    tmp_path: Path, change: Callable[[dict[str, Any]], Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    saved = make(tmp_path)
    for number in (1, 2):
        saved.save(number, state(number))
    change_manifest(tmp_path / "step-00000002", change)
    newest = saved.newest()
    assert newest is not None and newest.step == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("name", ["manifest.json", "state.json"])
@pytest.mark.parametrize("text", ["[" * 100_000 + "]" * 100_000, '{"a": NaN}', "[1]", '{"items": [["a"]]}'])
def test_json_that_is_none_of_ours_is_passed_over(tmp_path: Path, name: str, text: str) -> None:
    saved = make(tmp_path)
    for number in (1, 2):
        saved.save(number, state(number))
    path = tmp_path / "step-00000002" / name
    path.write_text(text)
    if name == "state.json":
        sha256 = hashlib.sha256(text.encode()).hexdigest()
        change_manifest(path.parent, lambda content: content["files"].update({name: sha256}))
    newest = saved.newest()
    assert newest is not None and newest.step == 1


def test_tensors_whose_header_lies_are_passed_over(tmp_path: Path) -> None:
    saved = make(tmp_path)
    for number in (1, 2):
        saved.save(number, state(number))
    path = tmp_path / "step-00000002" / checkpoints.TENSORS
    path.write_bytes(path.read_bytes().replace(b'"shape":[3]', b'"shape":[9]'))
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    change_manifest(path.parent, lambda content: content["files"].update({path.name: sha256}))
    newest = saved.newest()
    assert newest is not None and newest.step == 1
