"""What has been loaded, against what the files hold and what the recipe says: nothing random, nothing left out.

transformers draws what a file lacks at random, leaves out what it does not know, and quantises what it knows how to.
"""

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit, Params4bit
from torch import nn
from transformers import PreTrainedModel

from onebase.errors import BaseError
from onebase.model import weights

OTHERWISE = 0.01
"""The share of a model's weights that may be in another format than the recipe says: routers and the like are."""


@contextlib.contextmanager
def without_table() -> Iterator[None]:
    """Loading without transformers' table of weights that do not fit, which calls most of them harmless."""

    def keep(entry: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in entry.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def require_whole(model: PreTrainedModel, report: Mapping[str, Any], folder: Path) -> None:
    """BaseError unless the files hold each weight of the model, in its shape, and no other.

    report: transformers' own (`output_loading_info=True`). It understands tied weights, and leaves out the names that
    a model class declares to be of no use (rotary frequencies of old checkpoints, heads for several tokens ahead).
    """
    missing = sorted(report["missing_keys"])
    unexpected = sorted(name for name in report["unexpected_keys"] if not weights.MASKS.search(name))
    shapes = [f"{name} is {list(file)} and should be {list(ours)}" for name, file, ours in report["mismatched_keys"]]
    shapes += _other_shapes(model)
    faults = []
    if missing:
        faults.append(f"missing: {_few(missing)}")
    if unexpected:
        faults.append(f"not of this model: {_few(unexpected)}{_prefix(missing, unexpected)}")
    if shapes:
        faults.append(f"of another shape: {_few(sorted(shapes))}")
    if faults:
        raise BaseError(
            f"base.model: {folder}: the files do not hold the weights of a {type(model).__name__} as config.json "
            f"describes it. {'; '.join(faults)}. What is missing would be drawn at random. "
            "Download the folder again, or save the model whole (an adapter has to be merged into it first)."
        )
    _require_ties(model, folder)


def _few(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{len(names)} ({', '.join(names[:3])}{more})"


def _prefix(missing: list[str], unexpected: list[str]) -> str:
    """A note for the error if every name would fit without its beginning, which all of them share."""
    first = unexpected[0]
    for end in [place + 1 for place, letter in enumerate(first) if letter == "."]:
        fitting = {name[end:] for name in unexpected if name.startswith(first[:end])}
        if len(fitting) == len(unexpected) and fitting <= set(missing):
            return f", all of them under the prefix '{first[:end]}'"
    return ""


def _other_shapes(model: PreTrainedModel) -> Iterator[str]:
    """transformers compares no shapes where bitsandbytes packs the weights."""
    for name, module in model.named_modules():
        if not isinstance(module, Linear4bit) or not isinstance(module.weight, Params4bit):
            continue
        state, wanted = module.weight.quant_state, [module.out_features, module.in_features]
        if state is not None and (shape := list(state.shape or ())) != wanted:
            yield f"{name}.weight is {shape} and should be {wanted}"


def _require_ties(model: PreTrainedModel, folder: Path) -> None:
    """Where a config ties two weights and the files hold two that differ, transformers leaves them apart."""
    declared = model.get_expanded_tied_weights_keys(all_submodels=True)
    apart = sorted(declared.keys() - model.all_tied_weights_keys.keys())
    if apart:
        raise BaseError(
            f"base.model: {folder}: config.json ties {apart[0]} to {declared[apart[0]]} (tie_word_embeddings), and the "
            "files hold two weights that differ. Which is meant cannot be told: say tie_word_embeddings: false there "
            f"if both are, or take {apart[0]} out of the files."
        )


def require_quantization(model: PreTrainedModel, quantization: str) -> None:
    """BaseError unless the model's weights are in the format that the recipe says and the record will say."""
    if quantization == "nf4":
        _require_four_bits(model)
        return
    dtype = {"bf16": torch.bfloat16, "fp32": torch.float32}[quantization]
    sizes = {name: parameter.numel() for name, parameter in model.named_parameters()}
    others = [name for name, parameter in model.named_parameters() if parameter.dtype != dtype]
    share = sum(sizes[name] for name in others) / sum(sizes.values())
    if share > OTHERWISE:
        raise BaseError(
            f"base.quantization: {quantization} is asked for, and {share:.0%} of the weights of {type(model).__name__} "
            f"are in another format: {_few(others)}. Use another model."
        )


def _require_four_bits(model: PreTrainedModel) -> None:
    packed, plain = 0, {}
    for name, parameter in _matrices(model):
        if isinstance(parameter, Params4bit) and parameter.quant_state is not None:
            packed += math.prod(parameter.quant_state.shape or ())
        else:
            plain[name] = parameter.numel()
    share = sum(plain.values()) / max(1, packed + sum(plain.values()))
    if share > OTHERWISE or packed == 0:
        every = sum(parameter.numel() for parameter in model.parameters() if not isinstance(parameter, Params4bit))
        raise BaseError(
            f"base.quantization: nf4 leaves {share:.0%} of the weights in the layers of {type(model).__name__} as they "
            f"are: {_few(list(plain))}. bitsandbytes packs linear layers alone, not experts that are "
            f"fused into one tensor. Use base.quantization=bf16 (or fp32 on a CPU; {2e-9 * (every + packed):.1f} GB of "
            "memory in bf16, twice that in fp32), or a model without them."
        )


def _matrices(model: PreTrainedModel) -> Iterator[tuple[str, nn.Parameter]]:
    """Weights of the layers that multiply: all but embeddings, the LM head, norms, biases and convolutions, which NF4
    leaves alone in every model."""
    head = model.get_output_embeddings()
    for place, module in model.named_modules():
        if module is head or isinstance(module, nn.Embedding | nn.Conv1d | nn.Conv2d):
            continue
        for name, parameter in module.named_parameters(recurse=False):
            if parameter.dim() > 1:
                yield f"{place}.{name}", parameter
