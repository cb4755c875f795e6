"""Figures of a whole run: the learning curves of its stages, and where each policy ended, reward against KL."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from matplotlib.axes import Axes

from evaluation.statistics import error_bars, grouped
from onebase.files.json_file import parse_object
from onebase.tracking.figures import COLOURS, GREY, save
from onebase.tracking.tracker import METRICS

CURVES: Mapping[str, tuple[tuple[str, ...], ...]] = {
    "sft": (("sft/loss",),),
    "reward": (("reward/loss",), ("reward/accuracy",)),
    "ppo": (("ppo/score", "ppo/reward"), ("ppo/kl",), ("ppo/response_length",), ("ppo/explained_variance",)),
    "dpo": (("dpo/loss",), ("dpo/accuracy",)),
}
"""Metrics of each stage's learning curves; those in the same tuple share a figure. Metrics not logged are left out."""

T = TypeVar("T")

TRAINED = "ppo/reward/reward_model"
"""The reward model's own score of the training prompts' responses, without weight or other terms."""

MARKERS = "osD^v*PX"
"""For the models of one stage."""


def write(summary: Mapping[str, Any], stages: Mapping[str, tuple[str, Path]], folder: Path) -> None:
    """Draw every figure that there is data for.

    summary: the content of summary.json. stages: by name, which stage each finished one is a run of, and its folder.
    """
    logged = {name: read_metrics(path) for name, (_, path) in stages.items()}
    for name, (stage, _) in stages.items():
        for together in CURVES.get(stage, ()):
            shown = [metric for metric in together if any(metric in row for row in logged[name])]
            if shown:
                file = folder / f"{shown[0].replace(stage, name, 1).replace('/', '_')}.svg"
                save(partial(learning_curve, rows=logged[name], names=shown), file)
    models = {name: row for name, row in summary["models"].items() if {"reward", "kl_to_sft"} <= set(row)}
    if models:
        kinds = {name: stages[name][0] if name in stages else name for name in models}
        draw = partial(reward_against_kl, models=models, kinds=kinds, trajectory=logged.get("ppo", []))
        save(draw, folder / "reward_against_kl.svg")


def read_metrics(stage: Path) -> list[dict[str, Any]]:
    """The logged metrics, a dict a step; empty if the file is missing."""
    path = stage / METRICS
    if not path.is_file():
        return []
    lines = enumerate(path.read_bytes().split(b"\n"), start=1)
    return [parse_object(line, Path(f"{path}:{number}")) for number, line in lines if line]


def learning_curve(axes: Axes, *, rows: list[dict[str, Any]], names: list[str]) -> None:
    for name, colour in zip(names, COLOURS, strict=False):
        known = [(row["step"], row[name]) for row in rows if name in row]
        axes.plot([step for step, _ in known], [value for _, value in known], color=colour, label=name)
    axes.set(xlabel="step")
    axes.legend(frameon=False)


def reward_against_kl(
    axes: Axes,
    *,
    models: Mapping[str, Mapping[str, Mapping[str, float]]],
    kinds: Mapping[str, str],
    trajectory: list[dict[str, Any]],
) -> None:
    """The final models on held-out prompts, responses sampled at temperature 1, with 95 % intervals.

    If a stage has several models (kinds: the stage of each), a line joins its frontier, starting at the SFT policy. The
    bare base is then left out: it is so far away that all others would lie in a corner. The grey line is PPO in
    training, on training prompts, if the reward model was a term of its reward.
    """
    stages = grouped((stage, name) for name, stage in kinds.items())
    if any(len(names) > 1 for names in stages.values()):
        stages.pop("base", None)
        models = {name: row for name, row in models.items() if name != "base"}
    path = [(row["ppo/kl"], row[TRAINED]) for row in trajectory if "ppo/kl" in row and TRAINED in row]
    if path:
        axes.plot(*zip(*path, strict=True), color=GREY, linewidth=1, label="ppo in training")
    reward = "sampled_reward" if all("sampled_reward" in row for row in models.values()) else "reward"
    points = {name: (row["kl_to_sft"]["mean"], row[reward]["mean"]) for name, row in models.items()}
    for place, (stage, names) in enumerate(stages.items()):
        colour = COLOURS[place % len(COLOURS)]
        for number, name in enumerate(names):
            kl, marker = models[name]["kl_to_sft"], MARKERS[number % len(MARKERS)]
            point(axes, kl["mean"], models[name][reward], x_estimate=kl, color=colour, marker=marker, label=name)
        if len(names) > 1 and stage != "sft":  # SFT stages do not come from each other
            reached = [points[name] for name in (*names, "sft") if name in points]
            kls, rewards = zip(*frontier(reached, lambda point: point), strict=True)
            axes.plot(kls, rewards, color=colour, linewidth=1, linestyle="--", label=f"{stage}, frontier")
    axes.set(xlabel="KL to SFT, nats a response", ylabel="reward")
    # Many names would cover what they name.
    beside = {"loc": "upper left", "bbox_to_anchor": (1.0, 1.0)} if len(models) > 5 else {}
    axes.legend(frameon=False, **beside)


def frontier(items: Iterable[T], at: Callable[[T], tuple[float, float]]) -> list[T]:
    """The items that no other one dominates (at least their reward at no more KL), by rising KL; of equal ones the
    first: the most reward at each KL. at: KL and reward of an item. Gao et al. 2022, https://arxiv.org/abs/2210.10760,
    compare policies at equal KL in the same way."""
    best: list[T] = []
    for item in sorted(items, key=lambda item: (at(item)[0], -at(item)[1])):
        if not best or at(item)[1] > at(best[-1])[1]:
            best.append(item)
    return best


def point(
    axes: Axes, x: float, y: Mapping[str, float], *, x_estimate: Mapping[str, float] | None = None, **style: Any
) -> None:
    """One model's estimate with its error bars; the legend shows the marker alone. style: color, marker and label."""
    xerr = None if x_estimate is None else error_bars([x_estimate])
    axes.errorbar(x, y["mean"], xerr=xerr, yerr=error_bars([y]), color=style["color"], linestyle="none")
    axes.plot([x], [y["mean"]], linestyle="none", **style)
