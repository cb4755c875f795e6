"""What each step of a short PPO run took, by the same clock for ours and for a peer in an environment of its own."""

import resource
import statistics
import sys
import time
from typing import Any


class Marks:
    """When each step was logged, and with which numbers."""

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []

    def add(self, values: dict[str, float]) -> None:
        self.rows.append({"wall": time.perf_counter(), "cpu": time.process_time(), **values})

    def measured(self, batch: int) -> dict[str, Any]:
        """Of all steps but the first. `lengths` and `score` and so on are means over them."""
        first, *counted = self.rows
        seconds, episodes = counted[-1]["wall"] - first["wall"], batch * len(counted)
        means = {
            name: statistics.fmean(row[name] for row in counted) for name in sorted(counted[0].keys() - {"wall", "cpu"})
        }
        split = {name.removeprefix("time/"): value / batch for name, value in means.items() if name.startswith("time/")}
        return {
            "seconds_per_episode": seconds / episodes,
            "episodes_per_second": episodes / seconds,
            "tokens_per_second": means["response_length"] * episodes / seconds,
            "cpu_seconds_per_episode": (counted[-1]["cpu"] - first["cpu"]) / episodes,
            "episodes": episodes,
            "peak_rss_bytes": peak_rss_bytes(),
            **{name: value for name, value in means.items() if not name.startswith("time/")},
            "first_kl": first["kl"],
            "first_score": first["score"],
            "split": split,
        }


class Goal:
    """Whether a run has learnt: the mean score of its last steps, together `window` episodes, has reached `wanted`."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.wanted: float = settings["wanted_score"]
        self.steps: int = settings["window"] // settings["batch"]
        self.batch: int = settings["batch"]
        self.seconds_at_most: float = settings["seconds_at_most"]
        self.rows: list[dict[str, float]] = []

    def add(self, *, score: float, kl: float, seconds: float, response_length: float) -> None:
        """seconds: of this step alone. kl: nats per response from where the run began."""
        self.rows.append({"score": score, "kl": kl, "seconds": seconds, "response_length": response_length})

    @property
    def score(self) -> float:
        """Of the last steps."""
        return statistics.fmean(row["score"] for row in self.rows[-self.steps :])

    @property
    def reached(self) -> bool:
        return len(self.rows) >= self.steps and self.score >= self.wanted

    @property
    def seconds(self) -> float:
        return sum(row["seconds"] for row in self.rows)

    @property
    def is_over(self) -> bool:
        return self.reached or self.seconds >= self.seconds_at_most

    def result(self) -> dict[str, Any]:
        last = self.rows[-self.steps :]
        return {
            "reached": self.reached,
            "score": self.score,
            "first_score": self.rows[0]["score"],
            "kl": statistics.fmean(row["kl"] for row in last),
            "response_length": statistics.fmean(row["response_length"] for row in last),
            "first_response_length": self.rows[0]["response_length"],
            "seconds": self.seconds,
            "episodes": self.batch * len(self.rows),
            "scores": [round(row["score"], 4) for row in self.rows],
            "peak_rss_bytes": peak_rss_bytes(),
        }


def peak_rss_bytes() -> int:
    """The most memory this process has held so far. A copy of `onebase.tracking.usage`: a peer cannot import it."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
