"""What a model's configuration and class say of its forwards, known before a weight is loaded.

`onebase.inference.soundness` tries the rest on the loaded model.
"""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from onebase.errors import BaseError


@dataclass(frozen=True)
class Reach:
    """How many tokens, prompt and response together, a forward may hold."""

    tokens: int
    reason: str
    """Why no more, as the end of a sentence."""


def reach_of(config: PretrainedConfig) -> Reach | None:
    """The smallest of a model's limits; None where its config has none.

    Besides the positions that it was made for there are lengths at which a forward changes for all of its tokens. A
    score would then depend on what shares the forward, and sampling would cross the line in the middle of a response.
    """
    text = config.get_text_config()
    limits = [*_positions(text), *_rope_switches(text), *_temperature_steps(text)]
    return min(limits, key=lambda limit: limit.tokens, default=None)


def _positions(text: Any) -> Iterator[Reach]:
    for name in ("max_position_embeddings", "max_seq_len"):
        count = getattr(text, name, None)
        if isinstance(count, int) and count > 0:
            yield Reach(count, f"the model has {count} positions")


def _rope_switches(text: Any) -> Iterator[Reach]:
    """transformers (`modeling_rope_utils.dynamic_rope_update`) looks at the largest position of a forward for these."""
    for rope in _ropes(text):
        kind = str(rope.get("rope_type") or rope.get("type") or "default")
        longest = getattr(text, "max_position_embeddings", None)
        if kind in ("longrope", "su"):
            original = getattr(text, "original_max_position_embeddings", None)
            longest = rope.get("original_max_position_embeddings") or original or longest
        elif "dynamic" not in kind:
            continue
        if longest is None:
            raise BaseError(
                f"base.model: its config has rope_type '{kind}', which changes all positions of a forward at some "
                "length, and does not say at which one. Use a model with max_position_embeddings in its config.json."
            )
        yield Reach(
            int(longest),
            f"beyond {longest} positions its rope_type '{kind}' moves every token of a forward, so that results would "
            "depend on what shares it",
        )


def _ropes(text: Any) -> Iterator[Mapping[str, Any]]:
    """Each rotary embedding's settings: one for all layers, or one for each type of layer."""
    for name in ("rope_parameters", "rope_scaling"):
        settings = getattr(text, name, None)
        if isinstance(settings, Mapping):
            yield settings
            yield from (rope for rope in settings.values() if isinstance(rope, Mapping))


def _temperature_steps(text: Any) -> Iterator[Reach]:
    """Llama 4 scales its queries by the column of a row, in which padding on the left counts as well."""
    step = getattr(text, "floor_scale", None)
    if getattr(text, "attn_temperature_tuning", False) and isinstance(step, int):
        yield Reach(
            step - 1, f"from {step} positions on its attention is scaled by the place in the row, padding included"
        )


def attention_of(config: PretrainedConfig) -> str:
    """SDPA, or transformers' own attention in Python for models that have no other (or none at all)."""
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise BaseError(
            f"base.model: transformers has no causal language model for the model type '{config.model_type}'. Use a "
            "decoder such as Llama, Qwen or SmolLM."
        )
    known: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    classes = known if isinstance(known, tuple) else (known,)
    return "sdpa" if all(kind._supports_sdpa for kind in classes) else "eager"


SSM_PARTS = ("in_proj", "x_proj", "dt_proj", "out_proj")


def bypassed_layers(model: PreTrainedModel) -> list[str]:
    """Linear layers of state-space mixers: the code around them reads their weights, past any adapter on them.

    transformers hands the weights to fused kernels, or multiplies with them itself: an adapter would be trained by
    halves or not at all, and used in one path and not in the other.
    """
    names = []
    for place, module in model.named_modules():
        parts = [leaf for leaf, child in module.named_children() if leaf in SSM_PARTS and isinstance(child, nn.Linear)]
        source = inspect.getsource(type(module)) if parts else ""
        names += [f"{place}.{leaf}" for leaf in parts if f"self.{leaf}.weight" in source]
    return names


def trunk_of(model: PreTrainedModel) -> nn.Module:
    """The decoder without its LM head; BaseError where it cannot be told."""
    # Llama 4's prefix is the name of a part that only its larger sibling has.
    names = (model.base_model_prefix, "model")
    trunk = next((part for name in names if isinstance(part := getattr(model, name, None), nn.Module)), None)
    if trunk is None:
        raise BaseError(f"base.model: no decoder was found in {type(model).__name__}. Use another model.")
    return trunk
