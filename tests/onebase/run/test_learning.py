"""Learning-rate schedules by their definition."""

import pytest

from onebase.recipe.sections import Schedule
from onebase.run.learning import learning_rate_factor


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_every_schedule_rises_through_its_warm_up_and_no_step_is_lost(schedule: Schedule) -> None:
    assert [learning_rate_factor(step, 20, 3, schedule) for step in range(3)] == [0.25, 0.5, 0.75]
    assert learning_rate_factor(3, 20, 3, schedule) == 1.0
    assert learning_rate_factor(0, 20, 0, schedule) == 1.0


def test_a_constant_rate_stays() -> None:
    assert {learning_rate_factor(step, 20, 3, "constant") for step in range(3, 40)} == {1.0}


def test_a_linear_rate_falls_by_equal_steps_to_nothing_after_the_last() -> None:
    falling = [learning_rate_factor(step, 13, 3, "linear") for step in range(3, 14)]
    assert falling == pytest.approx([1 - step / 10 for step in range(11)])
    assert falling[-2] > 0 == falling[-1]  # the last step of the run still learns


def test_a_cosine_is_half_way_down_in_the_middle_and_flat_at_both_ends() -> None:
    rates = [learning_rate_factor(step, 103, 3, "cosine") for step in range(3, 104)]
    assert rates[50] == pytest.approx(0.5)
    assert rates[0] - rates[1] < 0.001 < 0.015 < rates[50] - rates[51]
    assert all(rates[step] + rates[100 - step] == pytest.approx(1.0) for step in range(51))


def test_a_rate_never_rises_again_past_the_end() -> None:
    assert learning_rate_factor(500, 20, 3, "cosine") == pytest.approx(0.0)
    assert learning_rate_factor(500, 20, 3, "linear") == 0.0
    assert learning_rate_factor(5, 2, 9, "linear") == pytest.approx(0.6)  # a run shorter than its warm-up
