"""A stage at work: one process a folder, metrics cut back, strikes, signals."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from onebase.cli.command import guarded
from onebase.errors import InputError, Interrupted, RecordError
from onebase.recipe.sections import CheckpointSection, TrackSection
from onebase.run.folders import hold, release
from onebase.run.learning import restoring
from onebase.run.session import Session
from onebase.seeding import set_random_state
from tests.factories import rows_of


def open_session(folder: Path, *, strikes: int = 3, every: int = 1, wandb: str = "off") -> Session:
    return Session(
        folder,
        "ppo",
        track=TrackSection.model_validate({"wandb": wandb}),
        checkpoint=CheckpointSection(every_steps=every, strikes=strikes),
        recipe={"seed": 0},
        state_bytes=4096,
    )


def test_a_second_process_in_the_folder_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "ppo"
    code = f"from onebase.run.folders import hold; from pathlib import Path; hold(Path({str(folder)!r}))"
    hold(folder)
    try:
        refused = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert "another process is working in this folder" in refused.stderr
    finally:
        release(folder)
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


def test_the_lock_of_a_killed_process_is_free(tmp_path: Path) -> None:
    folder = tmp_path / "ppo"
    code = (
        "import os, signal; from onebase.run.folders import hold; from pathlib import Path\n"
        f"hold(Path({str(folder)!r}))\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == -signal.SIGKILL
    hold(folder)
    release(folder)


def test_rows_after_the_checkpoint_are_cut_and_none_is_there_twice(tmp_path: Path) -> None:
    folder = tmp_path / "ppo"
    with open_session(folder) as session:
        for step in (1, 2):
            with session.step(step, lambda: {"x": torch.ones(2)}, total=9):
                session.tracker.log(step, {"ppo/score": step / 2})
                session.tracker.table("samples", ["prompt"], [[f"p{step}"]], step=step)
        session.tracker.log(3, {"ppo/score": 99.0})  # the step that a kill cuts short
        session.tracker.table("samples", ["prompt"], [["lost"]], step=3)
    with open_session(folder) as session:
        assert session.first_step == 3
        session.tracker.log(3, {"ppo/score": 1.5})
    assert [(row["step"], row["ppo/score"]) for row in rows_of(folder)] == [(1, 0.5), (2, 1.0), (3, 1.5)]
    assert [json.loads(line)["prompt"] for line in (folder / "samples.jsonl").read_text().splitlines()] == ["p1", "p2"]


def test_the_newest_wandb_run_holds_every_row_once(tmp_path: Path) -> None:
    folder = tmp_path / "group" / "ppo"
    for first in (1, 3):
        with open_session(folder, wandb="offline") as session:
            assert session.first_step == first
            for step in (first, first + 1):
                with session.step(step, lambda: {}, total=9):
                    session.tracker.log(step, {"ppo/score": float(step)})
    newest = max(folder.glob("wandb/offline-run-*/*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    command = [str(Path(sys.executable).with_name("wandb")), "leet", "inspect", "--json", str(newest)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert len(list(folder.glob("wandb/offline-run-*"))) == 2
    history = [line for line in printed.splitlines() if "ppo/score" in line and '"type":"history"' in line]
    assert len(history) == 4


def test_a_run_without_room_for_its_checkpoints_is_refused_before_it_writes_anything(tmp_path: Path) -> None:
    size = 1 << 58  # no disk has that much
    with pytest.raises(
        InputError, match=rf"need {3 * size:,} bytes \(keep=2 and one being written.* free .*checkpoint\.keep"
    ):
        Session(
            tmp_path / "ppo",
            "ppo",
            track=TrackSection.model_validate({"wandb": "off"}),
            checkpoint=CheckpointSection(),
            recipe={},
            state_bytes=size,
        )
    release(tmp_path / "ppo")
    assert [path.name for path in tmp_path.iterdir()] == [".ppo.lock"]


def test_room_that_is_there_is_given_back(tmp_path: Path) -> None:
    with open_session(tmp_path / "ppo") as session:
        session.checkpoints.probe(50 << 20)
        assert not list(tmp_path.rglob(".room*"))


def test_a_signal_before_the_weights_change_saves_what_the_step_started_from(tmp_path: Path) -> None:
    folder, weight = tmp_path / "ppo", torch.zeros(1)
    with pytest.raises(Interrupted) as caught, open_session(folder) as session:
        with session.step(1, lambda: {"weight": weight}, total=9):
            session.changing()
            weight += 1
        with session.step(2, lambda: {"weight": weight}, total=9):
            session.tracker.log(2, {"ppo/score": 0.0})
            os.kill(os.getpid(), signal.SIGTERM)
    assert caught.value.exit_code == 143
    with open_session(folder) as session:
        assert session.first_step == 2
        assert session.resumed is not None and float(session.resumed.state["stage"]["weight"]) == 1.0
    assert rows_of(folder) == []


def test_a_signal_while_the_weights_change_leaves_the_last_checkpoint(tmp_path: Path) -> None:
    folder, weight = tmp_path / "ppo", torch.zeros(1)

    def state() -> dict[str, torch.Tensor]:
        return {"weight": weight}

    with pytest.raises(Interrupted), open_session(folder) as session:
        for step in (1, 2):
            with session.step(step, state, total=9):
                session.changing()
                weight += 1
                if step == 2:
                    os.kill(os.getpid(), signal.SIGINT)
    with open_session(folder) as session:
        assert session.resumed is not None and float(session.resumed.state["stage"]["weight"]) == 1.0


def test_a_batch_that_is_not_finite_is_kept_and_skipped_until_the_last_strike(tmp_path: Path) -> None:
    folder = tmp_path / "ppo"
    with open_session(folder, strikes=2) as session:
        assert session.is_finite(1, 0.5, 2.0, batch=[[1, 2]])
        assert not session.is_finite(1, float("nan"), batch=[[1, 2]])
        with pytest.raises(FloatingPointError, match="strike 2 of 2"):
            session.is_finite(2, float("inf"), batch=[[3]])
    kept = sorted((folder / "nonfinite").iterdir())
    assert [json.loads(path.read_text())["batch"] for path in kept] == [[[1, 2]], [[3]]]


def test_the_last_strike_is_one_line_and_saves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Before `changing()`, where the reward stage looks: what was saved before the strikes stays what there is."""
    folder = tmp_path / "reward"

    def diverge() -> None:
        with open_session(folder, strikes=2, every=2) as session:
            for step in (1, 2, 3, 4):
                with session.step(step, lambda: {}, total=9):
                    if step > 2:
                        session.is_finite(step, float("nan"), batch=[])

    assert guarded(diverge) == 2
    printed = capsys.readouterr().err
    assert "strike 2 of 2: training diverged" in printed and "checkpoint.strikes=4" in printed
    assert "Traceback" not in printed
    assert [path.name for path in (folder / "checkpoints").iterdir()] == ["step-00000002"]


def test_strikes_survive_a_resume(tmp_path: Path) -> None:
    folder = tmp_path / "ppo"
    with open_session(folder) as session, session.step(1, lambda: {}, total=9):
        session.is_finite(1, float("nan"), batch=[])
    with open_session(folder) as session:
        assert session.strikes == 1


def test_a_strike_in_a_step_that_is_repeated_counts_once(tmp_path: Path) -> None:
    folder = tmp_path / "ppo"
    with pytest.raises(Interrupted), open_session(folder) as session:
        with session.step(1, lambda: {}, total=9):
            pass
        (folder / "checkpoints" / "step-00000001").rename(tmp_path / "gone")  # so that the boundary is written anew
        with session.step(2, lambda: {}, total=9):
            session.is_finite(2, float("nan"), batch=[])
            os.kill(os.getpid(), signal.SIGTERM)
    with open_session(folder) as session:
        assert session.first_step == 2 and session.strikes == 0


def test_a_full_disk_does_not_stop_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_session(tmp_path / "ppo") as session:

        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(session.checkpoints, "save", full)
        with session.step(1, lambda: {}, total=9):
            pass
    assert "checkpoint of step 1 was not written" in capsys.readouterr().err


def test_an_interruption_of_another_recipe_does_not_lose_the_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "ppo"
    with open_session(folder) as session, session.step(1, lambda: {}, total=9):
        pass
    with pytest.raises(InputError, match="another recipe"):
        Session(
            folder,
            "ppo",
            track=TrackSection(wandb="off"),
            checkpoint=CheckpointSection(),
            recipe={"seed": 1},
            state_bytes=4096,
        )
    release(folder)
    assert (folder / "checkpoints" / "step-00000001").is_dir()


def test_rows_that_a_checkpoint_knows_of_and_the_disk_does_not_hold_are_an_error(tmp_path: Path) -> None:
    folder = tmp_path / "ppo"
    with open_session(folder) as session, session.step(1, lambda: {}, total=9):
        session.tracker.log(1, {"ppo/score": 0.5})
    metrics = folder / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-5])
    with pytest.raises(
        RecordError, match=r"metrics\.jsonl: has \d+ bytes, and its checkpoint knows of \d+: rows are lost"
    ):
        open_session(folder)
    release(folder)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("random", None),
        ("files", [1]),
        ("strikes", "2"),
        ("stage", 7),
        ("halvings", -1),
        ("files", {"metrics.jsonl": "1"}),
    ],
)
def test_a_checkpoint_of_another_shape_is_refused(tmp_path: Path, name: str, value: Any) -> None:
    """Its hashes are right: it was written by another Onebase, or edited by somebody who can compute them."""
    folder = tmp_path / "ppo"
    with open_session(folder) as session, session.step(1, lambda: {"x": torch.ones(2)}, total=9):
        session.tracker.log(1, {"ppo/loss": 1.0})
    session.checkpoints.save(2, {**session_state(folder), name: value})
    rows_before = rows_of(folder)
    with pytest.raises(RecordError, match=rf"step-00000002: its state has no '{name}' .* --restart"):
        open_session(folder)
    release(folder)
    assert rows_of(folder) == rows_before


def session_state(folder: Path) -> dict[str, Any]:
    try:
        with open_session(folder) as session:
            assert session.resumed is not None
            return session.resumed.state
    finally:
        release(folder)


@pytest.mark.parametrize("state", [{}, {"python": 1}, {"roles": {}}, {"numpy": [1, 2]}])
def test_what_does_not_fit_what_learns_is_named(state: dict[str, Any]) -> None:
    linear = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(linear.parameters())
    with pytest.raises(RecordError, match=r"^checkpoint: the generators cannot be put back .* --restart"):
        put_back("the generators", lambda: set_random_state(state))
    with pytest.raises(RecordError, match=r"^checkpoint: the optimiser cannot be put back .* --restart"):
        put_back("the optimiser", lambda: optimizer.load_state_dict(state))
    with pytest.raises(MemoryError), restoring("the optimiser"):
        raise MemoryError


def put_back(what: str, work: Callable[[], None]) -> None:
    with restoring(what):
        work()
