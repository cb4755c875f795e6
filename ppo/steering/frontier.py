"""What is optimised against KL: a run's evaluations, which of them is best within the budget, and both as plots."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure

from evaluation.compare.run_plots import frontier
from onebase.tracking import figures
from onebase.tracking.figures import BLUE, GREY, ORANGE

OBJECTIVE, JUDGE = "objective", "judge"
"""Names of the metrics that `best/` is chosen by."""

COLORS = {"policy": BLUE, "ema": ORANGE}
CURVES = {
    "reward": "reward, held out",
    "objective": "objective, held out",
    "judge": "judge, held out",
    "task_score": "task score, held out",
    "kl": "KL to SFT, nats",
    "lm_loss": "LM loss, nats",
}
"""What the learning curve shows where it was measured, and what its axes say."""


@dataclass(frozen=True, kw_only=True)
class Point:
    """One evaluation."""

    step: int
    role: str
    metrics: dict[str, float]

    @property
    def chosen_by(self) -> str:
        """The judge where the recipe has one: it measures what the reward stands for. Else what the run optimises."""
        return JUDGE if JUDGE in self.metrics else OBJECTIVE

    @property
    def value(self) -> float:
        return self.metrics[self.chosen_by]

    @property
    def kl(self) -> float:
        return self.metrics["kl"]


def best_of(points: Sequence[Point], *, kl_budget: float) -> Point | None:
    """The highest held-out judgement, or objective, within the budget; if several are equal, the first."""
    within = [point for point in points if point.kl <= kl_budget and math.isfinite(point.value)]
    return max(within, key=lambda point: point.value, default=None)  # max takes the first of equal ones


def frontier_of(points: Sequence[Point]) -> list[Point]:
    """Those for which no other has at least the value at less KL, by rising KL."""
    return frontier(points, lambda point: (point.kl, point.value))


def write(points: Sequence[Point], best: Point | None, folder: Path, *, kl_budget: float) -> list[Path]:
    """`frontier.svg` and `learning.svg`: the same bytes for the same points; returns the files."""
    drawn = {"frontier": draw_frontier(points, best, kl_budget=kl_budget), "learning": draw_learning(points, best)}
    return [figures.write(figure, folder / f"{name}.svg") for name, figure in drawn.items()]


def draw_frontier(points: Sequence[Point], best: Point | None, *, kl_budget: float) -> Figure:
    """Every evaluation by KL and by what the best is chosen by, the frontier as a line, the best one with a ring."""
    figure = Figure(figsize=(4.8, 3.6), layout="constrained")
    axes = figure.add_subplot()
    for role, color in COLORS.items():
        evaluated = [point for point in points if point.role == role]
        if evaluated:
            axes.plot([p.kl for p in evaluated], [p.value for p in evaluated], "o", color=color, alpha=0.6, label=role)
    edge = frontier_of(points)
    axes.step([p.kl for p in edge], [p.value for p in edge], where="post", color=GREY, linewidth=1, label="frontier")
    if max((point.kl for point in points), default=0.0) > kl_budget / 2:
        axes.axvline(kl_budget, color=GREY, linestyle="--", linewidth=1, label="budget")
    if best is not None:
        axes.plot([best.kl], [best.value], "o", markersize=11, fillstyle="none", color="black")
        axes.annotate(f"step {best.step}", (best.kl, best.value), textcoords="offset points", xytext=(8, -10))
    axes.set(xlabel="KL to SFT, nats a response", ylabel=CURVES[points[0].chosen_by if points else OBJECTIVE])
    axes.legend(loc="lower right", frameon=False)
    return figure


def draw_learning(points: Sequence[Point], best: Point | None) -> Figure:
    """What was measured over the steps, one below the other."""
    names = [name for name in CURVES if any(name in point.metrics for point in points)]
    figure = Figure(figsize=(4.8, 1.2 + 1.6 * len(names)), layout="constrained")
    rows = figure.subplots(max(1, len(names)), 1, sharex=True, squeeze=False)
    for name, axes in zip(names, rows[:, 0], strict=False):
        for role, color in COLORS.items():
            evaluated = [point for point in points if point.role == role and name in point.metrics]
            if evaluated:
                xs, ys = [p.step for p in evaluated], [p.metrics[name] for p in evaluated]
                axes.plot(xs, ys, marker="o", markersize=3, color=color, label=role)
        if best is not None:
            axes.axvline(best.step, color=GREY, linestyle="--", linewidth=1)
        axes.set_ylabel(CURVES[name])
    if len({point.role for point in points}) > 1:
        rows[0, 0].legend(loc="lower right", frameon=False)
    rows[-1, 0].set_xlabel("step (dashed: the best within the budget)")
    return figure
