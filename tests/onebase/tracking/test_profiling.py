"""A profile's own table, against torch's."""

import gzip
import json
from pathlib import Path

import pytest
import torch
from torch.profiler import ProfilerActivity, profile, record_function

from onebase.tracking.profiling import by_part, events_of, profiled, self_seconds


def work() -> None:
    linear = torch.nn.Linear(8, 8)
    for _ in range(3):
        with record_function("part"):
            linear(torch.randn(4, 8)).tanh().sum().backward()


def test_seconds_of_an_operation_are_those_of_torchs_own_table() -> None:
    with profile(activities=[ProfilerActivity.CPU]) as found:
        work()
    ours = self_seconds(events_of(found))
    theirs = {one.key: one.self_cpu_time_total / 1e6 for one in found.key_averages()}
    assert "part" in theirs
    assert ours == pytest.approx(theirs, abs=1e-8)


@pytest.mark.parametrize(("total", "watched"), [(1, [1]), (2, [2]), (5, [2, 3])])
def test_the_second_and_third_step_are_profiled_or_the_only_one(tmp_path: Path, total: int, watched: list[int]) -> None:
    done = []
    for step in profiled(
        iter(range(1, total + 1)), total=total, folder=tmp_path, logged=lambda: {"ppo/time/step": 1.0}
    ):
        with record_function(f"step {step}"):
            work()
        done.append(step)
    assert done == list(range(1, total + 1))
    with gzip.open(tmp_path / "trace.json.gz", "rt") as stream:
        names = {event.get("name") for event in json.load(stream)["traceEvents"]}
    assert sorted(name for name in names if str(name).startswith("step ")) == [f"step {one}" for one in watched]


def test_a_run_with_no_step_left_writes_nothing(tmp_path: Path) -> None:
    assert [*profiled([], total=0, folder=tmp_path / "profile", logged=dict)] == []
    assert not (tmp_path / "profile").exists()


def test_parts_are_means_over_the_steps_the_longest_first() -> None:
    seconds = [{"train": 1.0, "step": 4.0}, {"train": 2.0, "evaluation": 4.0, "step": 6.0}]
    rows = [{"ppo/kl": 7.0, **{f"ppo/time/{part}": one for part, one in row.items()}} for row in seconds]
    lines = by_part(rows).splitlines()[2:]
    assert [line.split() for line in lines] == [
        ["5.000", "100.0%", "step"],
        ["2.000", "40.0%", "evaluation"],
        ["1.500", "30.0%", "train"],
    ]
