"""TRL's trainers through our checkpoints, and in pieces where a micro-batch does not fit into memory."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from onebase.model.roles import Roles
from onebase.run.learning import learning_state, restore_learning, restore_weights, restoring
from onebase.run.session import Session
from onebase.seeding import random_state
from onebase.trl.reports import latest, report_of

ROLE = "default"
"""The only name under which TRL finds an adapter that it is to train."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class _BeforeStep:
    """What a micro-batch adds to."""

    gradients: dict[torch.nn.Parameter, torch.Tensor | None]
    tokens: int
    counts: dict[str, int]
    """How long each of TRL's lists of metrics was."""


class Resumable(Trainer):
    """Puts a trainer's checkpoints through our mechanism: one state, verified whole, no pickle.

    Mixed into TRL's trainers. It replaces Trainer's own files at four hooks, and cuts a micro-batch that does not fit
    into memory into pieces. `onebase.trl.overrides` lists all that it overrides.
    """

    roles: Roles
    session: Session
    changed = False
    """Whether the optimiser has begun a step that is not logged yet."""
    loss_is_a_mean: ClassVar[bool]
    """Whether the loss of a micro-batch is the mean over its own rows, however many the whole batch has."""
    batch: list[Any]
    """Token ids of the micro-batches of the optimiser step that is being computed."""
    losses: list[float]
    """Of the same micro-batches."""
    measured: list[tuple[float, float]]
    """Weight and loss of each batch of the evaluation that is being made."""
    _metrics: Any
    _total_train_tokens: Any
    """These two are TRL's (`onebase.trl.overrides.ATTRIBUTES`)."""
    _share = 1.0
    _boundary: tuple[int, dict[str, Any], dict[str, int], str, dict[str, Any]] | None = None

    def note_boundary(self) -> None:
        """Remember what the last finished step left behind, because a signal may come within the next one."""
        # What a step adds to while it computes: a step cut short must leave nothing behind.
        counted = {"tokens": self._total_train_tokens, "metrics": latest(self)}
        # Without its log of every step: nothing reads it, and each save would cost more than the one before.
        kept = [field.name for field in dataclasses.fields(self.state) if field.name != "log_history"]
        state = json.dumps({name: getattr(self.state, name) for name in kept})
        self._boundary = (self.state.global_step, random_state(), self.session.tracker.sizes(), state, counted)
        self.changed = False
        self.batch, self.losses = [], []

    def save_boundary(self) -> None:
        """Save the state at the last step's end. The weights are still those: no later step has changed them yet."""
        if self._boundary is None:
            return
        step, random, files, trainer_state, counted = self._boundary
        trainer: Any = self
        content = {**learning_state(self.roles, (ROLE,), trainer.optimizer, trainer.lr_scheduler), **counted}
        self.session.save(step, content, random=random, files=files, extra={"trainer_state.json": trainer_state})

    # --- memory -----------------------------------------------------------------------------------------------------

    def training_step(self, model: Any, inputs: Mapping[str, Any], num_items_in_batch: Any = None) -> Any:
        """Forward and backward of a micro-batch, in pieces where it does not fit into memory."""
        size, before = self.rows_of(inputs), self._before_step()
        self.batch.append(inputs["input_ids"].tolist())
        attempts: list[int] = []

        def attempt() -> Any:
            if attempts:
                self._undo(before)
            attempts.append(1)
            rows = self.session.budget.halved(size)
            if rows == size:
                return super(Resumable, self).training_step(model, dict(inputs), num_items_in_batch)
            loss, weights = 0.0, list[float]()
            for start in range(0, size, rows):
                piece = self.select_rows(inputs, list(range(start, min(start + rows, size))))
                weights.append(self.weigh(piece))
                counted = num_items_in_batch is not None and not self.loss_is_a_mean
                self._share = 1.0 if counted else weights[-1] / max(self.weigh(inputs), 1.0)
                try:
                    loss = loss + super(Resumable, self).training_step(model, piece, num_items_in_batch)
                finally:
                    self._share = 1.0
            self._join_metrics(before, weights)
            return loss

        loss = self.session.budget.fit(attempt, size=size)
        self.losses.append(float(loss))
        return loss

    def evaluate(self, *arguments: Any, **options: Any) -> Any:
        """Measure on the held-out rows, in smaller batches where memory does not suffice for the recipe's."""
        size = self.args.per_device_eval_batch_size

        def attempt() -> Any:
            self._metrics["eval"].clear()
            self.measured = []
            self.args.per_device_eval_batch_size = self.session.budget.halved(size)
            try:
                return super(Resumable, self).evaluate(*arguments, **options)
            finally:
                self.args.per_device_eval_batch_size = size

        return self.session.budget.fit(attempt, size=size)

    def prediction_step(self, model: Any, inputs: Any, *arguments: Any, **options: Any) -> Any:
        result: Any = super().prediction_step(model, inputs, *arguments, **options)
        self.measured.append((self.weigh(inputs), float(result[0])))
        return result

    def log(self, logs: dict[str, float], *arguments: Any, **options: Any) -> None:
        """An evaluation's means are over its rows (SFT: tokens); TRL's are over batches, of which the last is small."""
        assert self.model is not None, "a trainer has a model"
        if not self.model.training and "eval_loss" in logs:
            weights, losses = zip(*self.measured, strict=True)
            logs["eval_loss"] = _mean(weights, losses)
            for values in self._metrics["eval"].values():
                if len(values) == len(weights):
                    values[:] = [_mean(weights, values)]
        super().log(logs, *arguments, **options)

    def rows_of(self, inputs: Mapping[str, Any]) -> int:
        """Rows of a micro-batch, of which none can be cut."""
        return len(inputs["input_ids"])

    def select_rows(self, inputs: Mapping[str, Any], rows: Sequence[int]) -> dict[str, Any]:
        """Some of a micro-batch's rows."""
        return {name: value[list(rows)] if torch.is_tensor(value) else value for name, value in inputs.items()}

    def weigh(self, inputs: Mapping[str, Any]) -> float:
        """What the mean loss of these rows counts in that of a whole micro-batch."""
        return float(self.rows_of(inputs))

    def compute_loss(self, *arguments: Any, **options: Any) -> Any:
        loss: Any = super().compute_loss(*arguments, **options)
        return loss if self._share == 1.0 else loss * self._share

    def _before_step(self) -> "_BeforeStep":
        gradients = {
            weight: None if weight.grad is None else weight.grad.clone() for weight in self.roles.parameters(ROLE)
        }
        counts = {name: len(values) for name, values in self._metrics["train"].items()}
        return _BeforeStep(gradients=gradients, tokens=self._total_train_tokens, counts=counts)

    def _undo(self, before: "_BeforeStep") -> None:
        """Take back what an attempt has added before memory ran out."""
        self._total_train_tokens = before.tokens
        for name, values in self._metrics["train"].items():
            del values[before.counts.get(name, 0) :]
        for parameter, gradient in before.gradients.items():
            parameter.grad = None if gradient is None else gradient.clone()

    def _join_metrics(self, before: "_BeforeStep", weights: Sequence[float]) -> None:
        """One entry for the micro-batch, their weighted mean, in place of one for each piece."""
        for name, values in self._metrics["train"].items():
            kept = before.counts.get(name, 0)
            if len(values) == kept + len(weights):
                values[kept:] = [_mean(weights, values[kept:])]

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def _maybe_log_save_evaluate(self, *arguments: Any, **options: Any) -> None:
        super()._maybe_log_save_evaluate(*arguments, **options)
        self.note_boundary()
        step = self.state.global_step
        if self.session.checkpoints.due(step) or step == self.state.max_steps:
            self.save_boundary()

    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        raise AssertionError("checkpoints are saved at step boundaries, by save_boundary")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        assert self.session.resumed is not None
        with restoring("what learns"):
            restore_weights(self.session.resumed.state["stage"]["roles"], self.roles, (ROLE,))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.session.resumed is None:
            return
        trainer: Any = self
        content = self.session.resumed.state["stage"]
        restore_learning(content, self.roles, (ROLE,), trainer.optimizer, trainer.lr_scheduler)
        with restoring("what was counted"):
            report_of(self).resume(content["tokens"], content["metrics"])
            trainer._total_train_tokens = content["tokens"]

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.session.restore_random()


def _mean(weights: Sequence[float], values: Sequence[float | int]) -> float:
    return sum(weight * value for weight, value in zip(weights, values, strict=True)) / max(sum(weights), 1.0)


class Guard(TrainerCallback):
    """Looks at the gradients before they are used, and knows when the weights are between two steps."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self.trainer: Resumable | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.trainer is not None:
            self.trainer.note_boundary()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        gradients = [p.grad for p in kwargs["model"].parameters() if p.grad is not None]
        norms = [float(gradient.norm()) for gradient in gradients]
        total = math.sqrt(sum(norm * norm for norm in norms))
        if self.trainer is not None:
            # From here on a boundary saved would hold a strike that the repeated step counts again.
            self.trainer.changed = True
        batch, losses = ([], []) if self.trainer is None else (self.trainer.batch, self.trainer.losses)
        if not self._session.is_finite(state.global_step + 1, *losses, total, batch=batch):
            # AdamW would carry a NaN into its moments: without gradients the step changes nothing.
            for parameter in kwargs["model"].parameters():
                parameter.grad = None
