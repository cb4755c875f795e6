"""Safetensors files of adapters and heads, which may come from a stranger: what lies in its header is refused by name.

A file begins with 8 bytes, the length of a JSON header: {name: {dtype, shape, data_offsets: [begin, end]}}; the data
of all tensors follows, without gaps (https://huggingface.co/docs/safetensors).
"""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from onebase.errors import RecordError
from onebase.files.json_file import parse_object

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Of a number of each kind that a weight may be."""
LARGEST_HEADER = 64 * 2**20


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Of each tensor, by the header alone; RecordError where that is wrong in itself or for its file."""

    def refuse(reason: str) -> RecordError:
        return RecordError(f"{path}: {reason}: damaged or edited. Put the original back, or train the stage again.")

    if path.is_symlink() or not path.is_file():
        raise RecordError(f"{path}: is not a plain file. Put the file itself there.")
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > min(size - 8, LARGEST_HEADER):
            raise refuse(f"its header should have {length:,} bytes, and the file has {size:,}")
        header = parse_object(stream.read(length), path, deepest=4)
    header.pop("__metadata__", None)
    shapes, ends = dict[str, tuple[int, ...]](), list[tuple[int, int]]()
    for name, entry in header.items():
        shape, begin, end = _entry(entry) or (None, 0, 0)
        if shape is None:
            raise refuse(f"the tensor {name[:200]!r} has no kind of number, shape and place that a weight may have")
        if end - begin != math.prod(shape) * BYTES[entry["dtype"]]:
            raise refuse(f"the tensor {name[:200]!r} of shape {list(shape)} cannot lie in {end - begin:,} bytes")
        shapes[name] = shape
        ends.append((begin, end))
    place = 0
    for begin, end in sorted(ends):
        if begin != place:
            raise refuse("its tensors overlap or leave gaps")
        place = end
    if place != size - 8 - length:
        raise refuse(f"its tensors have {place:,} bytes, and the file {size - 8 - length:,} for them")
    return shapes


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors as fp32, each number finite; RecordError, with the file's name first, for anything else."""
    read_shapes(path)
    try:
        tensors = {name: tensor.to(torch.float32) for name, tensor in load_file(path).items()}
    except (SafetensorError, ValueError, OSError) as error:
        raise RecordError(
            f"{path}: cannot be read ({error}). Put the original back, or train the stage again."
        ) from None
    for name, tensor in tensors.items():
        wrong = int((~torch.isfinite(tensor)).sum())
        if wrong:
            raise RecordError(
                f"{path}: {name}: {wrong} of {tensor.numel()} numbers are not finite. Train the stage again."
            )
    return tensors


def _entry(entry: Any) -> tuple[tuple[int, ...], int, int] | None:
    if not isinstance(entry, Mapping) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        return None
    shape, offsets = entry["shape"], entry["data_offsets"]
    if entry["dtype"] not in BYTES or not _are_counts(shape) or not _are_counts(offsets) or len(offsets) != 2:
        return None
    return tuple(shape), offsets[0], offsets[1]


def _are_counts(value: Any) -> bool:
    plain = isinstance(value, list) and len(value) < 9
    return plain and all(type(count) is int and 0 <= count < 2**62 for count in value)
