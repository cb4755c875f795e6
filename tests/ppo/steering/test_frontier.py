"""Which evaluation is best, and which are on the frontier of reward against KL."""

from pathlib import Path

import pytest

from ppo.steering.frontier import Point, best_of, frontier_of, write


def point(step: int, kl: float, objective: float, **more: float) -> Point:
    return Point(step=step, role="policy", metrics={"kl": kl, "objective": objective, "reward": -objective, **more})


POINTS = [point(0, 0.0, 1.0), point(2, 3.0, 4.0), point(4, 2.0, 4.0), point(6, 9.0, 7.0), point(8, 4.0, 3.0)]


@pytest.mark.parametrize(("budget", "step"), [(100.0, 6), (9.0, 6), (8.9, 2), (2.5, 4), (1.0, 0)])
def test_the_best_has_the_highest_objective_within_the_budget_and_the_earliest_of_equal_ones(
    budget: float, step: int
) -> None:
    best = best_of(POINTS, kl_budget=budget)
    assert best is not None and best.step == step


def test_there_may_be_no_best() -> None:
    assert best_of(POINTS[1:], kl_budget=1.0) is None
    assert best_of([point(1, 0.0, float("nan"))], kl_budget=1.0) is None


@pytest.mark.parametrize("judged", [(0.9, 0.1), (0.1, 0.9)])
def test_where_there_is_a_judge_it_chooses(judged: tuple[float, float]) -> None:
    points = [point(step, 1.0, float(step), judge=judge) for step, judge in enumerate(judged)]
    best = best_of(points, kl_budget=2.0)
    assert best is not None and best.metrics["judge"] == 0.9


def test_the_frontier_is_what_no_other_beats() -> None:
    """By definition, point against point."""
    by_definition = [
        point
        for point in POINTS
        if not any(other.kl <= point.kl and other.value >= point.value and other is not point for other in POINTS)
    ]
    assert frontier_of(POINTS) == sorted(by_definition, key=lambda point: point.kl)
    assert [point.step for point in frontier_of(POINTS)] == [0, 4, 6]


def test_plots_are_the_same_bytes_for_the_same_points_and_hold_no_script(tmp_path: Path) -> None:
    points = [
        *POINTS,
        Point(step=8, role="ema", metrics={"kl": 1.0, "objective": 2.0, "task_score": 0.5, "lm_loss": 3.0}),
    ]
    for folder in ("a", "b"):
        write(points, points[3], tmp_path / folder, kl_budget=9.0)
    for name in ("frontier.svg", "learning.svg"):
        text = (tmp_path / "a" / name).read_text()
        assert text == (tmp_path / "b" / name).read_text()
        assert "<script" not in text
    assert "step 6" in (tmp_path / "a" / "frontier.svg").read_text()
