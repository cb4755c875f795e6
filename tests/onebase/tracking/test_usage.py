"""Accounts of wall time, on a clock that the test turns."""

import ast
import time
from pathlib import Path

import pytest

from onebase.recipe.sections import CheckpointSection
from onebase.run.checkpoint import Checkpoints
from onebase.tracking.usage import Clock

ROOT = Path(__file__).parents[3]


class Hands:
    """A clock that stands still until it is told."""

    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_every_second_is_counted_once() -> None:
    now = Hands()
    clock = Clock(now=now)
    for name, inside, behind in (("decode", 2.0, 0.5), ("train", 4.0, 0.25), ("decode", 8.0, 0.0)):
        with clock.part(name):
            now.time += inside
        now.time += behind
    expected = {"time/decode": 10.0, "time/train": 4.0, "time/other": 0.75, "time/step": 14.75}
    assert clock.seconds("time/") == expected


def test_what_ends_in_an_error_has_taken_its_time_and_leaves_the_clock_running() -> None:
    """Work that does not fit into memory is done again, in the same part."""
    now = Hands()
    clock = Clock(now=now)
    for seconds, error in ((3.0, True), (1.0, False)):
        try:
            with clock.part("train"):
                now.time += seconds
                if error:
                    raise MemoryError
        except MemoryError:
            now.time += 0.5
    assert clock.seconds() == {"train": 4.0, "other": 0.5, "step": 4.5}


def test_a_part_within_a_part_is_refused() -> None:
    clock = Clock()
    with pytest.raises(AssertionError, match="score inside evaluation"), clock.part("evaluation"), clock.part("score"):
        pass


def wall_clocks(path: Path) -> list[str]:
    """Where a module asks what time it is."""
    wall = {"time.time", "time.time_ns", "time.localtime", "time.gmtime", "datetime.now", "datetime.utcnow"}
    calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
    names = [ast.unparse(call) for call in calls]
    return [f"{path.relative_to(ROOT)}: {name}" for name in names if name in wall or name.endswith(".today")]


def test_the_clock_on_the_wall_decides_nothing() -> None:
    """It may be set back and forth while a run computes. A record says when it was made; nothing reads that."""
    packages = ("onebase", "data", "evaluation", "sft", "reward", "ppo", "dpo", "pipeline")
    sources = [path for package in packages for path in (ROOT / package).rglob("*.py")]
    assert [place for path in sources for place in wall_clocks(path)] == ["onebase/run/record.py: datetime.now"]


@pytest.mark.parametrize("jump", [-1e9, 1e9])
def test_a_save_is_due_by_time_that_has_gone_by(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump: float) -> None:
    now = Hands()
    monkeypatch.setattr(time, "monotonic", now)
    checkpoints = Checkpoints(tmp_path, CheckpointSection(every_minutes=10), recipe={})
    monkeypatch.setattr(time, "time", lambda: 1.8e9 + jump)
    now.time += 599.0
    assert not checkpoints.due(1)
    now.time += 1.0
    assert checkpoints.due(1)
