"""Which steps of a run are profiled."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from torch.profiler import record_function

from onebase.tracking.profiling import profiled


@pytest.mark.parametrize(("total", "watched"), [(1, [1]), (2, [2]), (5, [2, 3])])
def test_the_second_and_third_step_are_profiled_or_the_only_one(tmp_path: Path, total: int, watched: list[int]) -> None:
    done = []
    for step in profiled(iter(range(1, total + 1)), total=total, folder=tmp_path):
        with record_function(f"step {step}"):
            torch.nn.Linear(8, 8)(torch.randn(4, 8)).tanh().sum().backward()
        done.append(step)
    assert done == list(range(1, total + 1))
    with gzip.open(tmp_path / "trace.json.gz", "rt") as stream:
        names = {event.get("name") for event in json.load(stream)["traceEvents"]}
    assert sorted(name for name in names if str(name).startswith("step ")) == [f"step {step}" for step in watched]


def test_a_run_with_no_step_left_writes_nothing(tmp_path: Path) -> None:
    assert [*profiled([], total=0, folder=tmp_path / "profile")] == []
    assert not (tmp_path / "profile").exists()
