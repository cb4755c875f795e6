"""Whether a reward model is better than a rule that reads nothing: the line to read before PPO.

It is compared with the best of three baselines on the same held-out rankings: the longer response wins, the shorter one
wins, a bag of words. One of the first two ranks at least half of the pairs right, as a coin does. The difference is
paired by prompt, with its 95 % interval over prompts:

    better            the interval lies above 0
    not better        it does not reach above 0
    cannot be told    the interval holds 0, or there are too few prompts
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from evaluation.statistics import interval_text
from onebase.errors import RecordError
from onebase.run.record import FinishedStage
from onebase.terminal import say

BASELINES = ("longer wins", "shorter wins", "bag of words")
"""A record holds numbers, so it names a baseline by its place. Random scores can be lucky and are not among them."""
LEAST = 6
"""Prompts. Five that all point one way have a probability of 1/16 by chance (two-sided sign test)."""

BETTER, NOT_BETTER, UNTOLD = "better", "not better", "cannot be told"

NAMES = {
    "prompts": "reward/eval_prompts",
    "baseline": "reward/baseline",
    "baseline_accuracy": "reward/baseline_accuracy",
    "over": "reward/over_baseline",
    "low": "reward/over_baseline_low",
    "high": "reward/over_baseline_high",
}
"""Metrics of the reward stage, by Verdict's fields."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Of one reward model, or of several as an ensemble."""

    prompts: int
    baseline: str
    """The one that ranks the most pairs right."""
    baseline_accuracy: float
    over: float
    """The model's accuracy minus the baseline's, paired by prompt; below, its interval."""
    low: float
    high: float

    @property
    def interval(self) -> dict[str, float]:
        return {"mean": self.over, "low": self.low, "high": self.high}

    @property
    def says(self) -> str:
        if self.prompts < LEAST:
            return UNTOLD
        return BETTER if self.low > 0 else NOT_BETTER if self.high <= 0 else UNTOLD

    @property
    def text(self) -> str:
        """One sentence with its numbers."""
        words = {
            BETTER: "better than",
            NOT_BETTER: "not better than",
            UNTOLD: "it cannot be told whether it is better than",
        }
        return (
            f"{words[self.says]} '{self.baseline}', which ranks {self.baseline_accuracy:.2f} of the held-out pairs "
            f"right: {interval_text(self.interval, '+.2f')} over {self.prompts} prompts"
        )

    def as_dict(self) -> dict[str, Any]:
        """For the report."""
        over = {"model_is_better_by": self.interval, "prompts": self.prompts}
        return {"says": self.says, "baseline": self.baseline, **over}

    @property
    def metrics(self) -> dict[str, float]:
        """For the record, from which `recorded` reads it."""
        values = asdict(self) | {"baseline": BASELINES.index(self.baseline)}
        return {NAMES[field]: float(value) for field, value in values.items()}


def verdict_of(report: Mapping[str, Any]) -> Verdict:
    """From a reward report (`evaluation.reward_model.report.build`). Of equal baselines the harder one to beat."""
    known = {name: report["baselines"][name] for name in BASELINES if "accuracy" in report["baselines"][name]}
    name = max(known, key=lambda key: (known[key]["accuracy"]["mean"], -known[key]["model_is_better_by"]["low"]))
    over = known[name]["model_is_better_by"]
    return Verdict(
        prompts=report["accuracy"]["prompts"],
        baseline=name,
        baseline_accuracy=known[name]["accuracy"]["mean"],
        over=over["mean"],
        low=over["low"],
        high=over["high"],
    )


def recorded(metrics: Mapping[str, float]) -> Verdict | None:
    """From a finished stage's metrics; None if an older Onebase did not measure it. RecordError if it was edited."""
    if not metrics.keys() >= set(NAMES.values()):
        return None
    values: dict[str, Any] = {field: metrics[name] for field, name in NAMES.items()}
    place = values["baseline"]
    if place not in range(len(BASELINES)):
        raise RecordError(
            f"metrics: {NAMES['baseline']} is {place:g}, expected 0 to {len(BASELINES) - 1}. The record was edited."
        )
    return Verdict(**values | {"prompts": int(values["prompts"]), "baseline": BASELINES[int(place)]})


def warn(stage: FinishedStage, consequence: str) -> None:
    """Warn if a reward stage is not known to beat its best baseline. consequence: for what it is used for."""
    verdict = recorded(stage.record.metrics)
    if verdict is not None and verdict.says != BETTER:
        say(f"warning: the reward model {stage.folder}: {verdict.text}. {consequence}")


def require_better(stage: FinishedStage, key: str) -> None:
    """RecordError unless a reward stage beats its best baseline. key: of the recipe that requires it."""
    verdict = recorded(stage.record.metrics)
    if verdict is not None and verdict.says == BETTER:
        return
    text = "not measured against baselines, because an older Onebase trained it" if verdict is None else verdict.text
    raise RecordError(
        f"{key}: the reward model {stage.folder}: {text}. Train a better one (more rankings, more steps), give "
        "evaluation.rankings more prompts if it cannot be told, or leave this key out."
    )
