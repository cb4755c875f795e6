"""What SFT and DPO share: TRL's trainers on our roles, with fp32 masters, our metrics and no silent surprises.

TRL does the loop. Its knobs are not declared again: a recipe's `trl:` block goes to SFTConfig or DPOConfig as it is,
and keys that they do not know are refused.
"""

import dataclasses
import itertools
import json
import math
import time
import typing
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from pydantic import TypeAdapter, create_model, field_validator, model_serializer, model_validator
from pydantic.errors import PydanticSchemaGenerationError
from transformers import (
    PrinterCallback,
    ProgressCallback,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from onebase.checkpoint import random_state
from onebase.errors import RecipeError
from onebase.interruption import Interrupted
from onebase.learning import learning_state, restore_learning, restore_weights
from onebase.progress import track
from onebase.recipes import Section
from onebase.roles import Roles
from onebase.session import Session
from onebase.tracking import Tracker, peak_rss_bytes

ROLE = "default"
"""The only name under which TRL finds an adapter that it is to train."""

MANAGED: Mapping[str, str] = {
    "output_dir": "the recipe's `out` says where",
    "seed": "the recipe's `seed` is used",
    "data_seed": "the recipe's `seed` is used",
    "bf16": "it follows from the hardware and base.quantization",
    "fp16": "it follows from the hardware and base.quantization",
    "report_to": "the recipe's `track` says where metrics go",
    "logging_steps": "every step is logged",
    "logging_strategy": "every step is logged",
    "logging_nan_inf_filter": "a loss that is not finite ends the run",
    "save_strategy": "the stage record holds the finished adapter",
    "model_init_kwargs": "`base` says which model, and how it is loaded",
    "trust_remote_code": "code of a model's publisher is never run",
    "chat_template_path": "`chat.template` is used",
    "eos_token": "the tokenizer's stop tokens are used",
    "pad_token": "the tokenizer's pad token is used",
    "assistant_only_loss": "only responses are ever learned",
    "completion_only_loss": "only responses are ever learned",
    "dataset_kwargs": "data comes as tokens",
    "dataset_text_field": "data comes as tokens",
    "remove_unused_columns": "data comes as tokens",
    "push_to_hub": "a stage writes to its folder only",
    "hub_token": "a token in a recipe would end up in the stage record; log in with `hf auth login`",
    "resume_from_checkpoint": "a stage is started again with the same command",
    "auto_find_batch_size": "it would change the batch, and with it the result",
}
"""Keys of TRL's configs that Onebase sets by itself, and why."""

T = TypeVar("T", bound="Resumable")


class TrlSection(Section):
    """The `trl:` block. What is not given has TRL's default, or the stage's where that differs."""

    defaults: ClassVar[dict[str, Any]] = {}

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, given: Any) -> Any:
        return {**cls.defaults, **given} if isinstance(given, dict) else given

    def arguments(self) -> dict[str, Any]:
        """What was given, and the stage's defaults."""
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}

    @model_serializer(mode="plain")
    def _only_given(self) -> dict[str, Any]:
        return self.arguments()


def trl_section(config: type, *, defaults: Mapping[str, Any]) -> type[TrlSection]:
    """The `trl:` block for one of TRL's config dataclasses: its fields and types, without those we set ourselves."""
    hints = typing.get_type_hints(config)
    fields: dict[str, Any] = {
        one.name: (_validatable(hints[one.name]), None) for one in dataclasses.fields(config) if one.init
    }

    def refuse(cls: type, value: Any, info: Any) -> Any:
        raise ValueError(f"is set by Onebase itself ({MANAGED[info.field_name]}); remove the key")

    managed: Any = field_validator(*(MANAGED.keys() & fields.keys()), mode="before")(classmethod(refuse))
    section = create_model(
        f"{config.__name__}Section", __base__=TrlSection, __validators__={"_refuse": managed}, **fields
    )
    section.defaults = dict(defaults)
    return section


def _validatable(hint: Any) -> Any:
    """The type, or Any for those that only the library itself can check."""
    try:
        TypeAdapter(hint)
    except PydanticSchemaGenerationError:
        return Any
    return hint


def configure(config: Callable[..., Any], section: TrlSection, roles: Roles, *, folder: Any, seed: int) -> Any:
    """TRL's config: the recipe's block, and what follows from base and hardware; RecipeError where TRL refuses."""
    half = roles.base.device.type == "cuda" and roles.base.identity.quantization != "fp32"
    own = {
        "output_dir": str(folder),
        "seed": seed,
        "data_seed": seed,
        # TRL defaults to bf16, which AVX2 CPUs emulate 25 times slower than fp32.
        "bf16": half,
        "fp16": False,
        "use_cpu": roles.base.device.type == "cpu",
        "report_to": "none",
        "logging_steps": 1,
        # Else a NaN loss is logged as 0 from then on.
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "disable_tqdm": True,
    }
    try:
        return config(**{**own, **section.arguments()})
    except (ValueError, TypeError) as error:
        raise RecipeError(f"trl: {config.__name__} refuses these settings: {error}") from error


def construct(roles: Roles, make: Callable[[], T], *, session: Session, names: Mapping[str, str]) -> T:
    """A trainer that starts from exactly the adapter that `roles` holds under the name 'default', in fp32.

    On a quantised base TRL casts everything trainable to bf16 in its constructor, and at the learning rates of RL most
    steps would round away: so everything is frozen while it is built and thawed afterwards.
    """
    before = {name: tensor.clone() for name, tensor in roles.state(ROLE).items()}
    roles.train()
    trainer = make()
    roles.train(ROLE)
    for name, tensor in roles.state(ROLE).items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, before[name]), f"TRL's constructor changed {name}"
    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
    trainer.roles, trainer.session = roles, session
    trainer.add_callback(Report(session.tracker, names))
    guard = Guard(session)
    guard.trainer = trainer
    trainer.add_callback(guard)
    return trainer


def train(trainer: "Resumable") -> None:
    """Train to the end, from the session's checkpoint where there is one."""
    session = trainer.session
    resumed = session.resumed
    try:
        trainer.train(resume_from_checkpoint=None if resumed is None else str(resumed.folder))
    except Interrupted:
        if not trainer.changed:
            trainer.save_boundary()
        raise


class Resumable(Trainer):
    """Puts a trainer's checkpoints through our mechanism: one state, verified whole, no pickle.

    Mixed into TRL's trainers. Trainer's own files of that kind are replaced at its four hooks.
    """

    roles: Roles
    session: Session
    changed = False
    """Whether the optimiser has begun a step that is not logged yet."""
    _boundary: tuple[int, dict[str, Any], dict[str, int], str, dict[str, Any]] | None = None

    def note_boundary(self) -> None:
        """Remember what the last finished step left behind, for a signal may come within the next one."""
        own: Any = self
        # What a step adds to while it computes, so that a step cut short leaves nothing behind.
        counted = {"tokens": own._total_train_tokens, "metrics": latest(self)}
        state = json.dumps(dataclasses.asdict(self.state))
        self._boundary = (self.state.global_step, random_state(), self.session.tracker.sizes(), state, counted)
        self.changed = False

    def save_boundary(self) -> None:
        """Save the state at the last step's end. The weights are still those: no later step has changed them yet."""
        if self._boundary is None:
            return
        step, random, files, trainer_state, counted = self._boundary
        own: Any = self
        content = {**learning_state(self.roles, (ROLE,), own.optimizer, own.lr_scheduler), **counted}
        self.session.save(step, content, random=random, files=files, extra={"trainer_state.json": trainer_state})

    def _maybe_log_save_evaluate(self, *arguments: Any, **options: Any) -> None:
        super()._maybe_log_save_evaluate(*arguments, **options)
        self.note_boundary()
        step = self.state.global_step
        if self.session.checkpoints.due(step) or step == self.state.max_steps:
            self.save_boundary()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        raise AssertionError("checkpoints are saved at step boundaries, by save_boundary")

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        assert self.session.resumed is not None
        restore_weights(self.session.resumed.state["stage"]["roles"], self.roles, (ROLE,))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or self.session.resumed is None:
            return
        own: Any = self
        content = self.session.resumed.state["stage"]
        restore_learning(content, self.roles, (ROLE,), own.optimizer, own.lr_scheduler)
        own._total_train_tokens = content["tokens"]
        _report(self).latest.update(content["metrics"])

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            self.session.restore_random()


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
        if not self._session.is_finite(state.global_step + 1, total, batch={"step": state.global_step + 1}):
            # AdamW would carry a NaN into its moments: without gradients the step changes nothing.
            for parameter in kwargs["model"].parameters():
                parameter.grad = None


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
        self._tracker.log(state.global_step, {**rows, "memory/peak": float(peak_rss_bytes())})
        self.latest.update(rows)

    def on_evaluate(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # Time spent evaluating is no training time.
        self._last = time.perf_counter()


def latest(trainer: Trainer) -> dict[str, float]:
    """The last value of every metric that the trainer's report has logged."""
    return dict(_report(trainer).latest)


def _report(trainer: Trainer) -> Report:
    return next(one for one in trainer.callback_handler.callbacks if isinstance(one, Report))
