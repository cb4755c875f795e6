"""Figures of the reward report."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from evaluation.statistics import error_bars
from onebase.tracking.figures import BLUE, GREY, ORANGE, save


def write(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """One file a figure, the same bytes for the same report; returns the files."""
    return [save(partial(draw, report=report), folder / f"{name}.svg") for name, draw in FIGURES.items()]


def reliability(axes: Axes, report: Mapping[str, Any]) -> None:
    """Share right against confidence; the grey bars say how many of the pairs lie where."""
    bins = report["calibration"]["bins"]
    known = [interval for interval in bins if interval["pairs"]]
    width = bins[0]["high"] - bins[0]["low"]
    edges, shares = [interval["low"] for interval in bins], [interval["share"] for interval in bins]
    axes.bar(edges, shares, width, align="edge", color=GREY, alpha=0.3)
    axes.plot([0.5, 1], [0.5, 1], color=GREY, linestyle="--", linewidth=1, label="calibrated")
    points = [interval["confidence"] for interval in known], [interval["accuracy"] for interval in known]
    axes.plot(*points, marker="o", color=BLUE, label=f"model, ECE {report['calibration']['ece']:.3f}")
    axes.set(xlim=(0.5, 1), ylim=(0, 1), xlabel="confidence (grey: share of the pairs)", ylabel="share right")
    axes.legend(loc="lower right", frameon=False)


def accuracy_by_gap(axes: Axes, report: Mapping[str, Any]) -> None:
    """The further apart two responses are, the easier they should be to tell."""
    _intervals(axes, [int(gap) for gap in report["by_gap"]], list(report["by_gap"].values()), BLUE, None)
    axes.axhline(0.5, color=GREY, linestyle="--", linewidth=1)
    axes.set(ylim=(0, 1), xlabel="tiers between the two", ylabel="share of pairs ranked right")
    axes.set_xticks([int(gap) for gap in report["by_gap"]])


def best_of_n(axes: Axes, report: Mapping[str, Any]) -> None:
    """Quality of the chosen response, and the most that choosing could give."""
    rows = report["best_of_n"]
    axes.plot([row["n"] for row in rows], [row["best_possible"] for row in rows], color=ORANGE, label="best possible")
    _intervals(axes, [row["n"] for row in rows], rows, BLUE, "chosen by score")
    axes.axhline(0.5, color=GREY, linestyle="--", linewidth=1)
    axes.set(ylim=(0, 1.02), xlabel="n", ylabel="share of the other responses it is better than")
    axes.set_xticks([row["n"] for row in rows])
    axes.legend(loc="lower right", frameon=False)


def _intervals(axes: Axes, at: list[int], cells: list[Mapping[str, Any]], color: str, label: str | None) -> None:
    means = [cell["mean"] for cell in cells]
    axes.errorbar(at, means, yerr=error_bars(cells), marker="o", capsize=3, color=color, label=label)


FIGURES: dict[str, Callable[..., None]] = {
    "reliability": reliability,
    "accuracy_by_gap": accuracy_by_gap,
    "best_of_n": best_of_n,
}
