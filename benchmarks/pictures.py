"""Pictures that are drawn from the values of a home of figures; `claims.py --write` draws them."""

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from homes import Home
from matplotlib.axes import Axes

from evaluation.compare.run_plots import bars, reward_against_kl
from evaluation.figures import BLUE, COLOURS, GREY, save


def draw(name: str, home: Home, target: Path) -> None:
    """The picture of the home of that name."""
    values = json.loads(json.dumps(home.values, default=float))
    save(partial(PICTURES[name], values=values), target)


def frontier(axes: Axes, *, values: Mapping[str, Any]) -> None:
    """Reward against KL."""
    reward_against_kl(axes, **{name: values[name] for name in ("models", "kinds", "trajectory")})


def check_against_time(axes: Axes, *, values: Mapping[str, Any]) -> None:
    """The demo's PPO and its rivals: task score of greedy answers over minutes of training, all stages counted, with 95 %
    intervals over the prompts of all seeds. PPO's way is that of the seeds for which it was measured."""
    rows = {name: row for name, row in values["all"]["rows"].items() if name != "base"}
    minutes = {name: row["seconds"] / 60 for name, row in rows.items()}
    for seed, one in values.items():
        if "curve" in one and seed != "all":
            own = one["rows"]
            start = (own["ppo"]["seconds"] - own["ppo"]["last"]) / 60
            way = [(own["sft"]["seconds"] / 60, own["sft"]), (start, own["sft"])]
            way += [(start + point["seconds"] / 60, point) for point in one["curve"].values()]
            way.append((own["ppo"]["seconds"] / 60, own["ppo"]))
            checks = [point["task_score"]["mean"] for _, point in way]
            axes.plot(
                [at for at, _ in way], checks, color=BLUE, linewidth=1, alpha=0.5, label=f"PPO's way, seed {seed}"
            )
    rivals = [name for name in rows if name not in ("sft", "ppo")]
    colours = {"sft": GREY, "ppo": BLUE, **dict(zip(rivals, COLOURS[1:], strict=False))}
    for (name, row), marker in zip(rows.items(), "osD^v", strict=True):
        check = row["task_score"]
        axes.errorbar(minutes[name], check["mean"], yerr=bars(check), color=colours[name], marker=marker, label=name)
    axes.set(xlabel="minutes of training, all stages", ylabel="task score of greedy answers")
    axes.set_xlim(left=0)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.0, 1.0))


PICTURES: Mapping[str, Callable[..., None]] = {"frontier": frontier, "demo-rivals": check_against_time}
