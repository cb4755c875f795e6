"""`adapter_config.json` of an adapter that may come from a stranger.

PEFT's LoraConfig does what its keys say: `megatron_core` names a module that is imported, `layer_replication` and
`init_lora_weights: pissa` change the base that all roles share, and a pattern in `target_modules` may take for ever. So
what LoRA as published needs is read, and any other key must have the value that does nothing.
"""

import re
from pathlib import Path
from typing import Any

from peft import LoraConfig

from onebase.errors import RecordError
from onebase.files.json_file import read_object
from onebase.model.tensor_file import read_shapes

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"
LARGEST = 2**20
"""Bytes of the file: it has some thousand."""
ALL_LINEAR = "all-linear"

IGNORED = frozenset({"base_model_name_or_path", "revision", "peft_version", "inference_mode", "lora_dropout"})
"""Which base it is, the record says; how much is dropped, the stage."""
NAME = re.compile(r"[A-Za-z_0-9]+(\.[A-Za-z_0-9]+)*")
"""Of a module, or of the last parts of its path."""
_LITERAL = r"\w+(\\\.\w+)*"
EXCLUDED = re.compile(rf"{_LITERAL}(\|{_LITERAL})*", re.ASCII)
"""`exclude_modules` as we write it: names with their dots escaped."""
FUSED_EXPECTED = "nothing, or numbers by the names of fused experts"
FUSED = re.compile(rf"(\.\*\\\.)?{_LITERAL}", re.ASCII)
"""A key of `rank_pattern`, as PEFT writes it for experts that are fused into one weight."""


def read_config(folder: Path) -> LoraConfig:
    """The config of the adapter in `folder`; RecordError, with file and key, for what is not plain LoRA."""
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise RecordError(
                f"{folder}: expected an adapter, but {name} is missing. Pass the folder of a finished stage."
            )
    path = folder / CONFIG
    fields, _ = read_object(path, largest=LARGEST)
    if fields.get("peft_type") != "LORA":
        raise RecordError(f"{path}: expected peft_type LORA, found {str(fields.get('peft_type'))[:100]!r}.")
    shapes = read_shapes(folder / WEIGHTS)
    known = _known_fields(fields, path, shapes)
    harmless = LoraConfig().to_dict()
    for key in sorted(fields.keys() - known.keys() - IGNORED - {"peft_type"}):
        value, default = fields[key], harmless.get(key)
        # A key of another PEFT's, where nothing is switched on.
        same = type(value) is type(default) and value == default
        idle = same if key in harmless else value in (None, False, [], {})
        if not idle:
            raise RecordError(
                f"{path}: {key[:100]}: found {str(value)[:100]!r}, expected {default!r}: only plain LoRA is read. "
                "Train the adapter without it."
            )
    return LoraConfig(**known)


def _known_fields(fields: dict[str, Any], path: Path, shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """The keys that are read, each of the kind that it must be."""
    rank, alpha, scaled = fields.get("r"), fields.get("lora_alpha"), fields.get("use_rslora", False)
    transposed = fields.get("fan_in_fan_out", False)  # PEFT notes it for GPT-2, whose layers hold W transposed
    task, excluded = fields.get("task_type"), fields.get("exclude_modules")
    targets, parameters = fields.get("target_modules"), fields.get("target_parameters") or []
    if isinstance(targets, str) and targets != ALL_LINEAR:
        targets = _targets_of(shapes)  # a pattern, which is not tried: the tensors say where they belong
    ranks_of, alphas_of = (fields.get(key) or {} for key in ("rank_pattern", "alpha_pattern"))
    ranks = {shape[0] for name, shape in shapes.items() if name.endswith("lora_A.weight") and shape}

    def in_tensors(part: Any) -> bool:
        """PEFT allocates by this number before a shape is compared. Fused experts have the rank once each."""
        return any(type(part) is int and 0 < part <= rows and rows % part == 0 for rows in ranks)

    some = _are_names(targets) and bool(targets or parameters)
    ours = isinstance(excluded, str) and EXCLUDED.fullmatch(excluded) is not None
    fused_ranks = _are_fused(ranks_of) and all(type(part) is int for part in ranks_of.values())
    requirements = [
        ("r", type(rank) is int and rank > 0, "a whole number above 0"),
        ("r", in_tensors(rank), f"the rank of the tensors in {WEIGHTS}, which have {sorted(ranks)[:3]} rows"),
        ("lora_alpha", _is_alpha(alpha), "a number above 0"),
        ("use_rslora", isinstance(scaled, bool), "true or false"),
        ("fan_in_fan_out", isinstance(transposed, bool), "true or false"),
        ("task_type", task in (None, "CAUSAL_LM"), "CAUSAL_LM"),
        ("exclude_modules", excluded is None or ours, "nothing, or modules as Onebase leaves them out"),
        ("target_parameters", _are_names(parameters), "names of parameters"),
        ("target_modules", targets == ALL_LINEAR or some, f"names of modules, or '{ALL_LINEAR}'"),
        ("rank_pattern", fused_ranks, FUSED_EXPECTED),
        ("rank_pattern", fused_ranks and all(map(in_tensors, ranks_of.values())), f"ranks of the tensors in {WEIGHTS}"),
        ("alpha_pattern", _are_fused(alphas_of) and all(map(_is_alpha, alphas_of.values())), FUSED_EXPECTED),
    ]
    for key, fits, expected in requirements:
        if not fits:
            raise RecordError(f"{path}: {key}: expected {expected}, found {str(fields.get(key))[:100]!r}.")
    return {
        "r": rank,
        "lora_alpha": alpha,
        "use_rslora": scaled,
        "fan_in_fan_out": transposed,
        "task_type": task,
        "exclude_modules": excluded,
        "target_modules": targets,
        "target_parameters": parameters or None,
        "rank_pattern": ranks_of,
        "alpha_pattern": alphas_of,
    }


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str) and NAME.fullmatch(name) for name in value)


def _are_fused(value: Any) -> bool:
    return isinstance(value, dict) and all(FUSED.fullmatch(key) for key in value)


def _is_alpha(value: Any) -> bool:
    return isinstance(value, int | float) and value is not True and 0 < value < 2**31


def _targets_of(shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """Full paths of the modules that the tensors belong to."""
    prefix, suffix = "base_model.model.", ".lora_A.weight"
    return sorted(
        name.removeprefix(prefix).removesuffix(suffix)
        for name in shapes
        if name.startswith(prefix) and name.endswith(suffix)
    )
