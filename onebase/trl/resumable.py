"""TRL's trainers through our checkpoints, and in pieces where a micro-batch does not fit into memory."""

import dataclasses
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import Trainer

from onebase.model.roles import Roles
from onebase.run.learning import learning_state, restore_learning, restoring
from onebase.run.session import Session
from onebase.seeding import random_state

ROLE = "default"
"""The only name under which TRL finds an adapter that it is to train."""


class Resumable(Trainer):
    """Puts a trainer's checkpoints through our mechanism: one state, verified whole, no pickle.

    Mixed into TRL's trainers. It replaces Trainer's own files at four hooks, and cuts a micro-batch that does not fit
    into memory into pieces. `tests/onebase/trl/test_overrides.py` lists all that it overrides.
    """

    roles: Roles
    session: Session
    changed = False
    """Whether the optimiser has begun a step that is not logged yet."""
    batch: list[Any]
    """Token ids of the micro-batches of the optimiser step that is being computed."""
    losses: list[float]
    """Of the same micro-batches."""
    latest: dict[str, float]
    """The last value of each metric that was logged, under its full name."""
    tokens_logged: float
    measured: list[tuple[float, float]]
    """Weight and loss of each batch of the evaluation that is being made."""
    _metrics: Any
    _total_train_tokens: Any
    """These two are TRL's."""
    _share = 1.0
    _boundary: tuple[int, dict[str, Any], dict[str, int], str, dict[str, Any]] | None = None

    def note_boundary(self) -> None:
        """Remember what the last finished step left behind, because a signal may come within the next one."""
        # What a step adds to while it computes: a step cut short must leave nothing behind.
        counted = {"tokens": self._total_train_tokens, "metrics": dict(self.latest)}
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
        size, metrics, tokens = self.rows_of(inputs), self._metrics["train"], self._total_train_tokens
        gradients = {weight: _copy(weight.grad) for weight in self.roles.parameters(ROLE)}
        # The trainer counts the tokens of the whole batch (SFT), or the loss is a mean over the rows of a piece (DPO).
        counted = num_items_in_batch is not None
        self.batch.append(inputs["input_ids"].tolist())
        attempts: list[int] = []

        def attempt() -> tuple[Any, list[float]]:
            if attempts:
                self._total_train_tokens = tokens
                for weight, gradient in gradients.items():
                    weight.grad = _copy(gradient)
            attempts.append(1)
            self._metrics["train"] = defaultdict(list)  # what an attempt adds is dropped with it
            rows, loss = self.session.budget.halved(size), 0.0
            places = (range(start, min(start + rows, size)) for start in range(0, size, rows))
            pieces = [dict(inputs)] if rows == size else [self.select_rows(inputs, place) for place in places]
            weights = [self.weigh(piece) for piece in pieces]
            for piece, weight in zip(pieces, weights, strict=True):
                self._share = 1.0 if counted or len(pieces) == 1 else weight / max(self.weigh(inputs), 1.0)
                loss = loss + super(Resumable, self).training_step(model, piece, num_items_in_batch)
            return loss, weights

        loss, weights = self.session.budget.fit(attempt, size=size)
        self._share = 1.0
        for name, values in self._metrics["train"].items():
            # One entry for the micro-batch, the weighted mean, in place of one for each piece.
            in_pieces = 1 < len(weights) == len(values)
            if name == "num_tokens":  # a total, which TRL sets and does not append to
                metrics[name] = values[-1:]
            else:
                metrics[name] += [_mean(weights, values)] if in_pieces else values
        self._metrics["train"] = metrics
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

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def _maybe_log_save_evaluate(self, *arguments: Any, **options: Any) -> None:
        super()._maybe_log_save_evaluate(*arguments, **options)
        self.note_boundary()
        step = self.state.global_step
        if self.session.checkpoints.due(step) or step == self.state.max_steps:
            self.save_boundary()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """The weights come with the optimiser, which Trainer loads before the first step."""

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.session.resumed is None:
            return
        trainer: Any = self
        content = self.session.resumed.state["stage"]
        restore_learning(content, self.roles, (ROLE,), trainer.optimizer, trainer.lr_scheduler)
        with restoring("what was counted"):
            self.latest.update(content["metrics"])
            self._total_train_tokens = self.tokens_logged = float(content["tokens"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.session.restore_random()


def _mean(weights: Sequence[float], values: Sequence[float | int]) -> float:
    return sum(weight * value for weight, value in zip(weights, values, strict=True)) / max(sum(weights), 1.0)


def _copy(gradient: torch.Tensor | None) -> torch.Tensor | None:
    return None if gradient is None else gradient.clone()
