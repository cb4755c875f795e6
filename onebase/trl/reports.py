"""What TRL's trainers log, as metrics of our own names, and a progress bar."""

import itertools
import time
from collections.abc import Iterator, Mapping
from typing import Any

from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from onebase.tracking import usage
from onebase.tracking.progress import track
from onebase.tracking.tracker import Tracker


class Report(TrainerCallback):
    """Sends what a trainer logs to the tracker, shows progress, and ends the run where a number is not finite."""

    def __init__(self, tracker: Tracker, names: Mapping[str, str]) -> None:
        """names: what TRL calls a metric -> its name in ours, without the stage; what is not named is not logged."""
        self._tracker = tracker
        self._names = names
        self._bar: Iterator[int] = iter(())
        self._tokens = 0.0
        self._last = time.perf_counter()
        self.latest: dict[str, float] = {}
        """The last value of each metric, under its full name."""

    def resume(self, tokens: float, metrics: Mapping[str, float]) -> None:
        """Resume from a checkpoint: the tokens seen and the metrics logged until then."""
        self._tokens = float(tokens)
        self.latest.update(metrics)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._bar = track(itertools.count(1), total=state.max_steps, description=self._tracker.stage)
        next(self._bar)
        self._last = time.perf_counter()

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if state.global_step < state.max_steps:
            next(self._bar)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        close = getattr(self._bar, "close", None)
        if close is not None:
            close()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        values = {self._names[name]: float(value) for name, value in (logs or {}).items() if name in self._names}
        if not values:
            return
        if "loss" in (logs or {}):
            now = time.perf_counter()
            seen = float((logs or {}).get("num_tokens", self._tokens))
            values["tokens_per_second"] = (seen - self._tokens) / (now - self._last)
            self._tokens, self._last = seen, now
        rows = {f"{self._tracker.stage}/{name}": value for name, value in values.items()}
        self._tracker.log(state.global_step, {**rows, **usage.peaks()})
        self.latest.update(rows)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # Time spent evaluating is no training time.
        self._last = time.perf_counter()


def latest(trainer: Trainer) -> dict[str, float]:
    """The last value of every metric that the trainer's report has logged."""
    return dict(report_of(trainer).latest)


def report_of(trainer: Trainer) -> Report:
    """The report among a trainer's callbacks."""
    return next(callback for callback in trainer.callback_handler.callbacks if isinstance(callback, Report))
