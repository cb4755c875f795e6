"""Pictures that are drawn from the values of a home of figures; `claims.py --write` draws them."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from homes import Home
from matplotlib.axes import Axes

from evaluation.compare.run_plots import point, reward_against_kl
from onebase.tracking.figures import BLUE, COLOURS, GREY, save


def draw(name: str, home: Home, target: Path) -> None:
    """The picture of the home of that name."""
    values = json.loads(json.dumps(home.values, default=float))
    save(partial(PICTURES[name], values=values), target)


def frontier(axes: Axes, *, values: Mapping[str, Any]) -> None:
    """Reward against KL."""
    reward_against_kl(axes, **{name: values[name] for name in ("models", "kinds", "trajectory")})


def task_score_against_time(axes: Axes, *, values: Mapping[str, Any]) -> None:
    """The demo's PPO and its rivals: task score of greedy answers over minutes of training, all stages counted.

    Intervals are 95 %, over the prompts of all seeds. PPO's learning curve is shown for the seeds that have one.
    """
    rows = {name: row for name, row in values["all"]["rows"].items() if name != "base"}
    minutes = {name: row["seconds"] / 60 for name, row in rows.items()}
    for seed, known in values.items():
        if "curve" in known and seed != "all":
            sft, ppo = known["rows"]["sft"], known["rows"]["ppo"]
            start = (ppo["seconds"] - ppo["last"]) / 60
            curve = [(sft["seconds"] / 60, sft), (start, sft)]
            curve += [(start + row["seconds"] / 60, row) for row in known["curve"].values()]
            curve.append((ppo["seconds"] / 60, ppo))
            scores = [row["task_score"]["mean"] for _, row in curve]
            axes.plot([at for at, _ in curve], scores, color=BLUE, linewidth=1, alpha=0.5, label=f"PPO, seed {seed}")
    rivals = [name for name in rows if name not in ("sft", "ppo")]
    colours = {"sft": GREY, "ppo": BLUE, **dict(zip(rivals, COLOURS[1:], strict=False))}
    for (name, row), marker in zip(rows.items(), "osD^v", strict=True):
        point(axes, minutes[name], row["task_score"], color=colours[name], marker=marker, label=name)
    axes.set(xlabel="minutes of training, all stages", ylabel="task score of greedy answers")
    axes.set_xlim(left=0)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


PICTURES: Mapping[str, Callable[..., None]] = {"frontier": frontier, "demo-rivals": task_score_against_time}
