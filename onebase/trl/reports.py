"""What our code does while one of TRL's trainers trains: metrics of our own names, a progress bar, finite gradients."""

import itertools
import math
import time
from collections.abc import Generator, Mapping
from typing import Any

from transformers import TrainerCallback

from onebase.tracking import usage
from onebase.tracking.progress import track
from onebase.trl.resumable import ROLE, Resumable


class Report(TrainerCallback):
    """Sends what a trainer logs to the tracker, shows progress, and skips a step with a gradient that is not finite."""

    def __init__(self, trainer: Resumable, names: Mapping[str, str]) -> None:
        """names: what TRL calls a metric -> its name in ours, without the stage; what is not named is not logged."""
        self._trainer, self._names = trainer, names
        self._last = 0.0

    def on_train_begin(self, *arguments: Any, **options: Any) -> None:
        trainer = self._trainer
        trainer.note_boundary()
        stage, total = trainer.session.tracker.stage, trainer.state.max_steps
        self._bar: Generator[int] = track(itertools.count(1), total=total, description=stage)
        next(self._bar)
        self._last = time.perf_counter()

    def on_pre_optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Also from here on the weights are between two steps."""
        trainer, weights = self._trainer, self._trainer.roles.parameters(ROLE)
        total = math.hypot(*(float(weight.grad.norm()) for weight in weights if weight.grad is not None))
        # A boundary saved after this would hold a strike that the repeated step counts again.
        trainer.changed = True
        step = trainer.state.global_step + 1
        if not trainer.session.is_finite(step, *trainer.losses, total, batch=trainer.batch):
            # AdamW would carry a NaN into its moments: without gradients the step changes nothing.
            for weight in weights:
                weight.grad = None

    def on_step_end(self, *arguments: Any, **options: Any) -> None:
        state = self._trainer.state
        if state.global_step < state.max_steps:
            next(self._bar)

    def on_train_end(self, *arguments: Any, **options: Any) -> None:
        self._bar.close()

    def on_evaluate(self, *arguments: Any, **options: Any) -> None:
        # Time spent evaluating is no training time.
        self._last = time.perf_counter()

    def on_log(self, *arguments: Any, logs: Mapping[str, float], **options: Any) -> None:
        trainer, tracker = self._trainer, self._trainer.session.tracker
        values = {self._names[name]: float(value) for name, value in logs.items() if name in self._names}
        if not values:
            return
        if "loss" in logs:
            now, tokens = time.perf_counter(), float(logs.get("num_tokens", trainer.tokens_logged))
            values["tokens_per_second"] = (tokens - trainer.tokens_logged) / (now - self._last)
            trainer.tokens_logged, self._last = tokens, now
        rows = {f"{tracker.stage}/{name}": value for name, value in values.items()}
        tracker.log(trainer.state.global_step, {**rows, **usage.peaks()})
        trainer.latest.update(rows)
