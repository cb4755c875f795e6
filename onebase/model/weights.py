"""The files of a base's weights: which of them transformers loads, and whether they are what they should be.

All but `require_finite` read headers alone, which takes milliseconds for any model.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from onebase.errors import BaseError

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
POINTERS = (b"version https://git-lfs", b"version https://hawser", b"/annex/objects/")
DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
"""Files of torch's distributed checkpoints: transformers would load them in place of any other."""
QUANTISED = re.compile(r"[IU]8|F8_\w+|F6_\w+|F4\w*")
INTEGERS = re.compile(r"[IU](8|16|32|64)")
MASKS = re.compile(r"(^|\.)(attn|attention|self_attn|self_attention)\.((masked_)?bias|causal_mask)$")
"""Causal masks, which old checkpoints hold as bytes or with -inf (GPT-2, GPT-J, GPT-Neo, GPT-NeoX, CodeGen). No model
of today reads them."""


def files_of(folder: Path) -> list[Path]:
    """The files that transformers loads as this folder's weights, by name; what else lies there is left alone.

    BaseError where one is missing, cut short, no safetensors, or stored quantised.
    """
    where = _entry(folder)
    files = [where] if where.suffix == ".safetensors" else _shards(where)
    for file in files:
        _require_unquantised(file, _header(file))
    return sorted(files)


def _entry(folder: Path) -> Path:
    """The one file, or the index of several: transformers' own choice, in its order."""
    present = sorted(path.name for path in folder.glob("*.safetensors"))
    distributed = [name for name in present if DISTRIBUTED.fullmatch(name)]
    if distributed:
        raise BaseError(
            f"base.model: {folder / distributed[0]} is part of a distributed checkpoint, which Onebase does not read. "
            "Save the model whole, with save_pretrained."
        )
    declared = read_json(folder / "config.json").get("transformers_weights")
    for name in [SINGLE, INDEX] if declared is None else [_inside(str(declared), folder / "config.json")]:
        path = folder / name
        if path.is_symlink() and not path.exists():
            raise BaseError(f"base.model: {path} is a link to a file that is not there. Download the folder again.")
        if path.is_file() and name.endswith((".safetensors", ".safetensors.index.json")):
            return path
    numbered = [name for name in present if re.search(r"-\d+-of-\d+\.safetensors$", name)]
    if numbered and declared is None:
        raise BaseError(f"base.model: {folder} holds {numbered[0]}, but no {INDEX}. Download the folder again.")
    others = f" ({', '.join(present)} is not read as a base's weights)" if present else ""
    raise BaseError(
        f"base.model: {folder} holds no *.safetensors weights: no {declared or f'{SINGLE}, and no {INDEX}'}{others}. "
        "Pickled weights are not read; convert them first."
    )


def _inside(name: str, source: Path) -> str:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise BaseError(f"base.model: {source} names weights outside of its folder: {name!r}. Keep them in it.")
    return name


def _shards(index: Path) -> list[Path]:
    """The files of an index, with every weight where the index has it."""
    content = read_json(index)
    places = content.get("weight_map")
    if not isinstance(places, dict) or not places or not all(isinstance(name, str) for name in places.values()):
        raise BaseError(f"base.model: {index} holds no 'weight_map' from weights to files. Download the folder again.")
    if not isinstance(content.get("metadata"), dict):
        raise BaseError(
            f"base.model: {index} holds no 'metadata', which transformers reads. Add \"metadata\": {{}} to it, or save "
            "the model again."
        )
    seen: dict[str, str] = {}
    files = [index.parent / _inside(name, index) for name in sorted(set(places.values()))]
    for file in files:
        if not file.is_file():
            held = sum(place == file.name for place in places.values())
            raise BaseError(
                f"base.model: {file} is missing: {index.name} has {held} of {len(places)} weights in it. "
                "Download the folder again."
            )
        for weight in _header(file):
            if weight in seen:
                raise BaseError(
                    f"base.model: {index.parent}: the weight {weight} is in two files, {seen[weight]} and {file.name}. "
                    "Which of them is meant cannot be told; save the model again."
                )
            seen[weight] = file.name
    for weight, name in places.items():
        if seen.get(weight) != Path(name).name:
            raise BaseError(
                f"base.model: {index} has the weight {weight} in {name}, which does not hold it. "
                "Index and files are not of one save; download the folder again."
            )
    return files


def _header(file: Path) -> dict[str, str]:
    """Each tensor's number format by its name. BaseError for anything but a whole safetensors file."""
    require_content(file)
    try:
        with safe_open(file, framework="pt") as content:
            return {name: str(content.get_slice(name).get_dtype()) for name in content.offset_keys()}
    except (SafetensorError, OSError) as error:
        raise BaseError(
            f"base.model: {file} is not a whole safetensors file ({error}; it has {file.stat().st_size} bytes). "
            "It was cut short or damaged on its way here: download it again."
        ) from None


def require_content(file: Path) -> None:
    """BaseError for a file that git put there in place of the content."""
    with file.open("rb") as stream:
        start = stream.read(200)
    if start.startswith(POINTERS[:2]) or POINTERS[2] in start:
        raise BaseError(
            f"base.model: {file} is a pointer of Git LFS or git-annex, not the file itself. "
            "Fetch the content (`git lfs pull`), or download the folder again."
        )


def read_json(file: Path, *, encoding: str = "utf-8") -> dict[str, Any]:
    """A JSON file of a base's folder; BaseError where it holds no object."""
    require_content(file)
    try:
        content = json.loads(file.read_text(encoding=encoding))
    except (ValueError, RecursionError) as error:
        raise BaseError(f"base.model: {file} is not valid JSON ({error}). Download it again.") from None
    if not isinstance(content, dict):
        raise BaseError(f"base.model: {file} holds {type(content).__name__}, not a JSON object. Download it again.")
    return content


def _require_unquantised(file: Path, formats: Mapping[str, str]) -> None:
    for name, number in formats.items():
        packed = INTEGERS.fullmatch(number) and name.endswith("weight")
        if (QUANTISED.fullmatch(number) or packed) and not MASKS.search(name):
            raise BaseError(
                f"base.model: {file} is stored quantised: {name} is of {number}. Onebase quantises itself, from "
                "the weights as they were trained: pass the publisher's bf16 or fp16 model (with "
                "base.quantization=nf4 where memory is short)."
            )


def require_finite(files: Iterable[Path], *, ignored: Iterable[str] = ()) -> None:
    """BaseError where a weight holds NaN or infinity, which NF4 would turn into ordinary numbers on a GPU.

    It reads every byte once more: about a second for 8 billion weights in bf16, out of the page cache.
    ignored: patterns of names that the model does not read.
    """
    skipped = [MASKS, *map(re.compile, ignored)]
    broken: list[str] = []
    folder = Path()
    for file in files:
        folder = file.parent
        with safe_open(file, framework="pt") as content:
            names = [name for name in content.offset_keys() if not any(p.search(name) for p in skipped)]
            broken += [f"{name} in {file.name}" for name in names if not _is_finite(content.get_tensor(name))]
    if broken:
        more = f" and {len(broken) - 3} more" if len(broken) > 3 else ""
        raise BaseError(
            f"base.model: {folder}: NaN or infinity in the weights: {', '.join(broken[:3])}{more}. "
            "The model was saved broken, or damaged since. Pass another one."
        )


def _is_finite(tensor: torch.Tensor) -> bool:
    if not tensor.is_floating_point() or tensor.numel() == 0:
        return True
    # Not isfinite(), which is 50 times slower: the least and the largest are NaN where any number is.
    return all(bool(extreme.isfinite()) for extreme in tensor.aminmax())
