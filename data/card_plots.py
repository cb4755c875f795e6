"""The plots of a data card, as SVG whose bytes depend on the data alone."""

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.figure import Figure

from data.card import Lengths
from onebase.recipe.sections import LimitsSection
from onebase.terminal import printable

SHOWN = 20
"""Tasks with a bar of their own."""


def figures(card: Mapping[str, Any], lengths: Lengths, limits: LimitsSection | None) -> dict[str, Figure]:
    """File names and figures; only those that the records have something for."""
    found = {"lengths.svg": _lengths(lengths, limits), "tasks.svg": _tasks(card["tasks"])}
    if "rankings" in card:
        found["rankings.svg"] = _rankings(card["rankings"])
    return found


def save(figure: Figure, path: Path) -> None:
    """Write a figure; no date and no random ids, so that equal data gives equal bytes."""
    with matplotlib.rc_context({"svg.hashsalt": "onebase", "svg.fonttype": "none"}), warnings.catch_warnings():
        # Text stays text: the reader's own fonts have the letters that matplotlib's lack.
        warnings.filterwarnings("ignore", message=".*missing from font.*")
        figure.savefig(path, format="svg", metadata={"Date": None})


def _lengths(lengths: Lengths, limits: LimitsSection | None) -> Figure:
    figure = Figure(figsize=(8, 3), layout="constrained")
    both = (("prompt", lengths.prompts), ("response", lengths.responses))
    for axes, (name, values) in zip(figure.subplots(1, 2), both, strict=True):
        axes.set_xlabel(f"{name}, {lengths.unit}")
        axes.set_ylabel("count")
        if values:
            axes.hist(values, bins=min(40, max(values) - min(values) + 1), color="#4c72b0")
        if limits is not None and lengths.unit == "tokens":
            limit = limits.prompt_tokens if name == "prompt" else limits.response_tokens
            axes.axvline(limit, color="#c44e52", linestyle="--", label=f"limit {limit}")
            axes.legend()
    return figure


def _tasks(tasks: Mapping[str, int]) -> Figure:
    shown = list(tasks.items())[:SHOWN]
    figure = Figure(figsize=(8, 1 + 0.25 * max(1, len(shown))), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(shown)), [count for _, count in shown], color="#4c72b0")
    # parse_math: a task may be named with dollar signs; and with control characters, which XML cannot hold.
    axes.set_yticks(range(len(shown)), [printable(name[:60]) for name, _ in shown], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("rows")
    return figure


def _rankings(rankings: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(8, 3), layout="constrained")
    sizes, biases = figure.subplots(1, 2)
    sizes.bar(list(rankings["sizes"]), list(rankings["sizes"].values()), color="#4c72b0")
    sizes.set_xlabel("responses a ranking")
    sizes.set_ylabel("rankings")
    for position, name in enumerate(("longer_wins", "earlier_wins")):
        found = rankings[name]
        if found["pairs"]:
            below, above = found["share"] - found["low"], found["high"] - found["share"]
            error = [[max(0.0, below)], [max(0.0, above)]]
            biases.errorbar([found["share"]], [position], xerr=error, fmt="o", color="#4c72b0", capsize=4)
    biases.axvline(0.5, color="#8c8c8c", linestyle="--")
    biases.set_yticks([0, 1], ["longer wins", "earlier wins"])
    biases.set_ylim(-0.5, 1.5)
    biases.set_xlim(0, 1)
    biases.set_xlabel("share of pairs, 95 % interval")
    return figure
