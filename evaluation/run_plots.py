"""Figures of a whole run, from what its stages left on disk: learning curves, reward against KL, reward reliability."""

import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from evaluation.figures import COLOURS, GREY, save
from evaluation.reward_plots import reliability
from onebase.tracking import METRICS

CURVES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "sft": (("sft/loss",),),
    "reward": (("reward/loss",), ("reward/accuracy",)),
    "ppo": (("ppo/score", "ppo/reward"), ("ppo/kl",), ("ppo/response_length",), ("ppo/explained_variance",)),
    "dpo": (("dpo/loss",), ("dpo/accuracy",)),
}
"""What each stage's curves show: metrics in the same tuple share a figure. Names a stage did not log are left out."""


def write(summary: Mapping[str, Any], stages: Mapping[str, Path], folder: Path) -> list[Path]:
    """All figures that there are numbers for; returns the files.

    summary: the content of summary.json. stages: folder of each finished stage, by name.
    """
    written = []
    logged = {stage: read_metrics(path) for stage, path in stages.items()}
    for stage, rows in logged.items():
        for together in CURVES.get(stage, ()):
            names = [name for name in together if any(name in row for row in rows)]
            if names:
                target = folder / f"{names[0].replace('/', '_')}.svg"
                written.append(save(partial(learning_curve, rows=rows, names=names), target))
    models = {name: row for name, row in summary["models"].items() if {"reward", "kl_to_sft"} <= set(row)}
    if models:
        draw = partial(reward_against_kl, models=models, trajectory=logged.get("ppo", []))
        written.append(save(draw, folder / "reward_against_kl.svg"))
    report = stages["reward"] / "report.json" if "reward" in stages else None
    if report is not None and report.is_file():
        content = json.loads(report.read_text(encoding="utf-8"))
        written.append(save(partial(reliability, report=content), folder / "reward_reliability.svg"))
    return written


def read_metrics(stage: Path) -> list[dict[str, Any]]:
    """What a stage logged, a dict a step; nothing where its file is missing."""
    path = stage / METRICS
    if not path.is_file():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def learning_curve(axes: Axes, *, rows: list[dict[str, Any]], names: list[str]) -> None:
    for name, colour in zip(names, COLOURS, strict=False):
        known = [(row["step"], row[name]) for row in rows if name in row]
        axes.plot([step for step, _ in known], [value for _, value in known], color=colour, label=name)
    axes.set(xlabel="step")
    axes.legend(frameon=False)


def reward_against_kl(
    axes: Axes, *, models: Mapping[str, Mapping[str, Mapping[str, float]]], trajectory: list[dict[str, Any]]
) -> None:
    """Where each model ended on held-out prompts, with 95 % intervals; in grey PPO's way there, on training prompts."""
    way = [(row["ppo/kl"], row["ppo/score"]) for row in trajectory if "ppo/kl" in row and "ppo/score" in row]
    if way:
        axes.plot([kl for kl, _ in way], [score for _, score in way], color=GREY, linewidth=1, label="ppo in training")
    for (name, row), colour in zip(models.items(), COLOURS, strict=False):
        reward, kl = row["reward"], row["kl_to_sft"]
        axes.errorbar(
            kl["mean"], reward["mean"], xerr=_bars(kl), yerr=_bars(reward), color=colour, marker="o", label=name
        )
    axes.set(xlabel="KL to SFT, nats a response", ylabel="reward")
    axes.legend(frameon=False)


def _bars(estimate: Mapping[str, float]) -> list[list[float]]:
    """Lengths of both halves of an error bar; a mean may lie outside its percentile interval by a rounding."""
    return [[max(0.0, estimate["mean"] - estimate["low"])], [max(0.0, estimate["high"] - estimate["mean"])]]
