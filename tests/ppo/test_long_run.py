"""A long run on the tiny model: memory and file handles do not grow. `pytest -s` prints what was measured."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy
import psutil
import pytest

from onebase.recipe import reader
from onebase.tracking.tracker import Tracker
from ppo.recipe.recipe import PpoRecipe
from ppo.train import run

STEPS = 500
WARM_UP = 100
"""Steps until the allocator has seen all sizes, and Python has made what it makes once."""
MOST_MB_PER_100_STEPS = 1.0


@pytest.mark.slow
def test_five_hundred_steps_hold_memory_and_file_handles(
    finish_run: Callable[[str], Path], tiny_base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parents = finish_run("fp32")
    given = [
        *(f"base.model={tiny_base_folder}", "base.quantization=fp32", f"out={tmp_path / 'ppo'}"),
        *(f"parents.{name}={parents / name}" for name in ("sft", "reward")),
        *(f"train.episodes={8 * STEPS}", "track.wandb=offline", "checkpoint.every_steps=50"),
    ]
    process, measured = psutil.Process(), list[tuple[int, int, int]]()
    log = Tracker.log

    def measure(self: Tracker, step: int, values: Mapping[str, float]) -> None:
        log(self, step, values)
        measured.append((step, process.memory_info().rss, process.num_fds()))

    monkeypatch.setattr(Tracker, "log", measure)
    run(reader.read("recipes/smoke/ppo.yaml", PpoRecipe, given))
    steps, resident, handles = numpy.array([one for one in measured if one[0] > WARM_UP]).T
    assert len(steps) == STEPS - WARM_UP
    slope = 100 * numpy.polyfit(steps, resident, 1)[0] / 1e6
    print(f"steps {steps[0]} to {steps[-1]}: {slope:+.3f} MB resident a 100 steps, from {resident[0] / 1e6:.1f} to")
    print(f"{resident[-1] / 1e6:.1f} MB; file handles {handles.min()} to {handles.max()}")
    assert slope < MOST_MB_PER_100_STEPS
    assert handles.max() - handles.min() <= 1  # a file may just be open while it is written
    assert handles[-1] == handles[0]
