"""What SFT and DPO share: TRL's trainers on our roles, with fp32 masters, our metrics and no silent surprises.

TRL does the loop. Its knobs are not declared again: a recipe's `trl:` block goes to SFTConfig or DPOConfig as it is,
and keys that they do not know are refused.
"""

import dataclasses
import math
import typing
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, TypeVar

import torch
from pydantic import TypeAdapter, create_model, field_validator, model_serializer, model_validator
from pydantic.errors import PydanticSchemaGenerationError
from transformers import (
    PrinterCallback,
    ProgressCallback,
)

from onebase.errors import RecipeError
from onebase.interruption import Interrupted
from onebase.recipes import Section
from onebase.reports import Report
from onebase.resumable import ROLE, Guard, Resumable
from onebase.roles import Roles
from onebase.session import Session

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
    "save_steps": "the recipe's `checkpoint` says when a run is saved",
    "save_total_limit": "the recipe's `checkpoint` says how many are kept",
    "save_only_model": "the recipe's `checkpoint` saves all that a run needs to go on",
    "load_best_model_at_end": "the adapter of the last step is the stage's",
    "metric_for_best_model": "the adapter of the last step is the stage's",
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

POSITIVE = (
    "learning_rate",
    "per_device_train_batch_size",
    "per_device_eval_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "max_length",
    "beta",
)
"""Numbers of TRL's configs that must be above 0: TRL divides by some, and takes others without a word."""

NOT_NEGATIVE = ("weight_decay", "max_grad_norm", "warmup_steps", "warmup_ratio")

LARGEST: Mapping[str, float] = {"num_train_epochs": 1e6, "beta": 1e6}
"""Beyond these a number of steps, or a loss, overflows."""

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

    def bound(cls: type, value: Any, info: Any) -> Any:
        if isinstance(value, int | float) and (value < 0 or (value == 0 and info.field_name in POSITIVE)):
            least = "greater than 0" if info.field_name in POSITIVE else "0 or greater"
            raise ValueError(f"Input should be {least}")
        if isinstance(value, int | float) and value > LARGEST.get(info.field_name, math.inf):
            raise ValueError(f"Input should be {LARGEST[info.field_name]:g} at most")
        return value

    bounded: Any = field_validator(*({*POSITIVE, *NOT_NEGATIVE} & fields.keys()), mode="after")(classmethod(bound))
    managed: Any = field_validator(*(MANAGED.keys() & fields.keys()), mode="before")(classmethod(refuse))
    section = create_model(
        f"{config.__name__}Section",
        __base__=TrlSection,
        __validators__={"_refuse": managed, "_bound": bounded},
        **fields,
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
    own = {
        "output_dir": str(folder),
        "seed": seed,
        "data_seed": seed,
        # TRL defaults to bf16, which AVX2 CPUs emulate 25 times slower than fp32.
        "bf16": roles.base.computes_in_bf16,
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
        made = config(**{**own, **section.arguments()})
    except (ValueError, TypeError) as error:
        raise RecipeError(f"trl: {config.__name__} refuses these settings: {error}") from error
    if made.n_gpu > 1:  # one process, one GPU: Trainer would spread the model over all that it sees, which TRL refuses
        made._n_gpu = 1
    return made


def construct(roles: Roles, make: Callable[[], T], *, session: Session, names: Mapping[str, str]) -> T:
    """A trainer that starts from exactly the adapter that `roles` holds under the name 'default', in fp32.

    On a quantised base TRL casts everything trainable to bf16 in its constructor, and at the learning rates of RL most
    steps would round away: so everything is frozen while it is built and thawed afterwards.
    """
    before = {name: tensor.clone() for name, tensor in roles.state(ROLE).items()}
    roles.train()
    try:
        trainer = make()
    except ValueError as error:
        raise RecipeError(f"trl: the trainer refuses these settings: {error}") from error
    roles.train(ROLE)
    for name, tensor in roles.state(ROLE).items():
        assert tensor.dtype == torch.float32 and torch.equal(tensor, before[name]), f"TRL's constructor changed {name}"
    for noisy in (PrinterCallback, ProgressCallback):
        trainer.remove_callback(noisy)
    trainer.roles, trainer.session = roles, session
    trainer.batch, trainer.losses = [], []
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
