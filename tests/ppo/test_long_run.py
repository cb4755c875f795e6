"""A long run on the tiny model: memory and file handles do not grow. `pytest -s` prints what was measured."""

from collections.abc import Callable, Mapping

import numpy
import psutil
import pytest

from onebase.tracking.tracker import Tracker
from ppo.recipe.recipe import PpoRecipe
from ppo.train import run

STEPS = 500
WARM_UP = 100
"""Steps until the allocator has seen all sizes, and Python has made what it makes once."""
MOST_MB_PER_100_STEPS = 1.0


@pytest.mark.slow
def test_five_hundred_steps_hold_memory_and_file_handles(
    make_recipe: Callable[..., PpoRecipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (f"train.episodes={8 * STEPS}", "track.wandb=offline", "checkpoint.every_steps=50")
    process, measured = psutil.Process(), list[tuple[int, int, int]]()
    log = Tracker.log

    def measure(self: Tracker, step: int, values: Mapping[str, float]) -> None:
        log(self, step, values)
        measured.append((step, process.memory_info().rss, process.num_fds()))

    monkeypatch.setattr(Tracker, "log", measure)
    run(make_recipe(*settings))
    steps, resident, handles = numpy.array([row for row in measured if row[0] > WARM_UP]).T
    assert len(steps) == STEPS - WARM_UP
    slope = 100 * numpy.polyfit(steps, resident, 1)[0] / 1e6
    print(f"steps {steps[0]} to {steps[-1]}: {slope:+.3f} MB resident a 100 steps, from {resident[0] / 1e6:.1f} to")
    print(f"{resident[-1] / 1e6:.1f} MB; file handles {handles.min()} to {handles.max()}")
    assert slope < MOST_MB_PER_100_STEPS
    assert handles.max() - handles.min() <= 1  # a file may just be open while it is written
    assert handles[-1] == handles[0]
