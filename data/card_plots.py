"""The plots of a data card."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from data.card import Lengths
from onebase.recipe.sections import LimitsSection
from onebase.terminal import printable
from onebase.tracking.figures import BLUE, GREY, ORANGE

SHOWN = 20
"""Tasks that are drawn."""


def figures(card: Mapping[str, Any], lengths: Lengths, limits: LimitsSection | None) -> dict[str, Figure]:
    """File names and figures; only those that the records have something for."""
    drawn = {"lengths.svg": _lengths(lengths, limits), "tasks.svg": _tasks(card["tasks"])}
    if "rankings" in card:
        drawn["rankings.svg"] = _rankings(card["rankings"])
    return drawn


def _lengths(lengths: Lengths, limits: LimitsSection | None) -> Figure:
    figure = Figure(figsize=(8, 3), layout="constrained")
    both = (("prompt", lengths.prompts), ("response", lengths.responses))
    for axes, (name, values) in zip(figure.subplots(1, 2), both, strict=True):
        axes.set(xlabel=f"{name}, {lengths.unit}", ylabel="count")
        if values:
            axes.hist(values, bins=min(40, max(values) - min(values) + 1), color=BLUE)
        if limits is not None and lengths.unit == "tokens":
            limit = limits.prompt_tokens if name == "prompt" else limits.response_tokens
            axes.axvline(limit, color=ORANGE, linestyle="--", label=f"limit {limit}")
            axes.legend()
    return figure


def _tasks(tasks: Mapping[str, int]) -> Figure:
    shown = list(tasks.items())[:SHOWN]
    figure = Figure(figsize=(8, 1 + 0.25 * max(1, len(shown))), layout="constrained")
    axes = figure.subplots()
    axes.barh(range(len(shown)), [count for _, count in shown], color=BLUE)
    # The name of a task may hold dollar signs, which are not maths, and control characters, which XML cannot hold.
    axes.set_yticks(range(len(shown)), [printable(name[:60]) for name, _ in shown], parse_math=False)
    axes.invert_yaxis()
    axes.set_xlabel("rows")
    return figure


def _rankings(rankings: Mapping[str, Any]) -> Figure:
    figure = Figure(figsize=(8, 3), layout="constrained")
    sizes, biases = figure.subplots(1, 2)
    sizes.bar(list(rankings["sizes"]), list(rankings["sizes"].values()), color=BLUE)
    sizes.set(xlabel="responses per ranking", ylabel="rankings")
    for position, name in enumerate(("longer_wins", "earlier_wins")):
        bias = rankings[name]
        if bias["pairs"]:
            below, above = bias["share"] - bias["low"], bias["high"] - bias["share"]
            error = [[max(0.0, below)], [max(0.0, above)]]
            biases.errorbar([bias["share"]], [position], xerr=error, fmt="o", color=BLUE, capsize=4)
    biases.axvline(0.5, color=GREY, linestyle="--")
    biases.set_yticks([0, 1], ["longer wins", "earlier wins"])
    biases.set(ylim=(-0.5, 1.5), xlim=(0, 1), xlabel="share of pairs, 95 % interval")
    return figure
