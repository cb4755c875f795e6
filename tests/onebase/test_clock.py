"""Accounts of wall time, on a clock that the test turns."""

import pytest

from onebase.clock import Clock


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
