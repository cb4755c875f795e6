"""The `trl:` block of a recipe: the keys of TRL's SFTConfig or DPOConfig, as they are.

They are not declared again. Keys that TRL does not know are refused, and so are those that Onebase sets itself.
"""

import dataclasses
import math
import typing
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from pydantic import create_model, field_validator, model_serializer, model_validator

from onebase.recipe.sections import LARGEST_COUNT, Section

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
    "use_cpu": "it follows from the hardware",
    "resume_from_checkpoint": "a stage is started again with the same command",
    "auto_find_batch_size": "it would change the batch, and with it the result",
}
"""Keys of TRL's configs that Onebase sets, and why."""

_ONE_PROCESS = "SFT and DPO run in one process on one device"
_COMPILED = "the layers of the base are exchanged while roles take turns, and a compiled model keeps the first ones"
_OWN_CHECKPOINTS = "checkpoints are Onebase's own: see the recipe's `checkpoint`"
_NO_HUB = "a stage writes to its folder only"
_TRACK = "the recipe's `track` says where metrics go"
_NO_METRICS = "only losses and TRL's own metrics are measured"

REFUSED: Mapping[str, str] = {
    **dict.fromkeys(("deepspeed", "fsdp", "fsdp_config", "parallelism_config", "accelerator_config"), _ONE_PROCESS),
    **dict.fromkeys(("ddp_backend", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph"), _ONE_PROCESS),
    "ddp_find_unused_parameters": _ONE_PROCESS,
    **dict.fromkeys(("torch_compile", "torch_compile_backend", "torch_compile_mode"), _COMPILED),
    **dict.fromkeys(("use_liger_kernel", "liger_kernel_config"), "it exchanges the layers that adapters sit on"),
    **dict.fromkeys(("bf16_full_eval", "fp16_full_eval"), "it would round the adapter's fp32 weights for good"),
    "ignore_data_skip": "a run that goes on would learn from the first rows again",
    "restore_callback_states_from_checkpoint": _OWN_CHECKPOINTS,
    **dict.fromkeys(("enable_jit_checkpoint", "save_on_each_node", "greater_is_better"), _OWN_CHECKPOINTS),
    **dict.fromkeys(("hub_model_id", "hub_strategy", "hub_private_repo", "hub_always_push", "hub_revision"), _NO_HUB),
    **dict.fromkeys(("run_name", "project"), _TRACK),
    **dict.fromkeys(("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"), _TRACK),
    **dict.fromkeys(("do_train", "do_eval", "do_predict"), "a stage always trains and evaluates"),
    **dict.fromkeys(("include_for_metrics", "batch_eval_metrics", "eval_use_gather_object"), _NO_METRICS),
    **dict.fromkeys(("label_names", "length_column_name"), "data comes as tokens"),
    "activation_offloading": "activations stay on the device; trl.gradient_checkpointing=true saves memory",
    "optim_target_modules": "the optimisers that read it train whole weights; here adapters are trained",
    **dict.fromkeys(("sync_ref_model", "ref_model_mixup_alpha", "ref_model_sync_steps"), "the reference stays fixed"),
}
"""Keys of TRL's configs that do nothing here, or cannot work, and why. What switches them off is let through."""

CHECKPOINTING = {"use_reentrant", "preserve_rng_state", "determinism_check", "debug", "early_stop", "every_n_layers"}
"""Keys of `trl.gradient_checkpointing_kwargs`, as torch's `checkpoint` has them; the last one is transformers'."""

POSITIVE = (
    *("learning_rate", "num_train_epochs", "beta", "max_length", "pad_to_multiple_of", "precompute_ref_batch_size"),
    *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"),
    "eval_accumulation_steps",
)
"""Numbers of TRL's configs that must be above 0: TRL divides by some, and takes others silently."""

NOT_NEGATIVE = ("weight_decay", "max_grad_norm", "warmup_steps", "warmup_ratio")

LARGEST: Mapping[str, float] = {"num_train_epochs": 1e6, "beta": 1e6}
"""Beyond these a number of steps, or a loss, overflows."""


class TrlSection(Section):
    """The `trl:` block. What is not given has TRL's default, or the stage's where that differs."""

    defaults: ClassVar[dict[str, Any]] = {}

    @model_validator(mode="before")
    @classmethod
    def _with_defaults(cls, block: Any) -> Any:
        return {**cls.defaults, **block} if isinstance(block, dict) else block

    @field_validator("*", mode="before")
    @classmethod
    def _can_be_used(cls, value: Any, info: Any) -> Any:
        name = str(info.field_name)
        if name in MANAGED:
            raise ValueError(f"is set by Onebase itself ({MANAGED[name]}); remove the key")
        if value and name in REFUSED:
            raise ValueError(f"cannot be used here ({REFUSED[name]}); remove the key")
        return value

    @field_validator("*", mode="after")
    @classmethod
    def _is_bounded(cls, value: Any, info: Any) -> Any:
        name = str(info.field_name)
        if isinstance(value, int) and abs(value) > LARGEST_COUNT:
            raise ValueError(f"Input should be {LARGEST_COUNT} at most")
        if name not in (*POSITIVE, *NOT_NEGATIVE) or not isinstance(value, int | float):
            return value
        if value < 0 or (value == 0 and name in POSITIVE):
            raise ValueError(f"Input should be {'greater than 0' if name in POSITIVE else '0 or greater'}")
        if value > LARGEST.get(name, math.inf):
            raise ValueError(f"Input should be {LARGEST[name]:g} at most")
        return value

    def arguments(self) -> dict[str, Any]:
        """What was given, and the stage's defaults."""
        return {name: getattr(self, name) for name in type(self).model_fields if name in self.model_fields_set}

    @model_serializer(mode="plain")
    def _only_given(self) -> dict[str, Any]:
        return self.arguments()


def trl_section(config: type, *, defaults: Mapping[str, Any]) -> type[TrlSection]:
    """The `trl:` block for one of TRL's config dataclasses: its fields and types."""
    hints = typing.get_type_hints(config)
    fields: dict[str, Any] = {
        field.name: (hints[field.name], None) for field in dataclasses.fields(config) if field.init
    }
    section = create_model(f"{config.__name__}Section", __base__=TrlSection, **fields)
    section.defaults = dict(defaults)
    return section


def require_one_of(key: str, arguments: Mapping[str, Any], known: Sequence[str]) -> None:
    """ValueError where a key of the `trl:` block (one value, or a list) has one that the trainer does not know."""
    values = arguments.get(key)
    for value in values if isinstance(values, list) else [values]:
        if value is not None and value not in known:
            raise ValueError(f"trl.{key}: expected one of {', '.join(known)}, found {value!r}")


def padded_to(section: TrlSection) -> int:
    """Of which number the lengths of TRL's rows are multiples."""
    multiple = str(section.arguments().get("pad_to_multiple_of") or 1)
    return int(multiple) if multiple.isdecimal() else 1
