"""Safetensors files of adapters and heads, which may come from a stranger: what lies in its header is refused by name.

A file begins with 8 bytes, the length of a JSON header: {name: {dtype, shape, data_offsets: [begin, end]}}; the data
of all tensors follows, without gaps (https://huggingface.co/docs/safetensors).
"""

import math
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from onebase.errors import RecordError
from onebase.files.json_file import parse_object

BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}
"""Of a number of each kind that a weight may be."""
LARGEST_HEADER = 64 * 2**20

Count = Annotated[int, Field(ge=0, lt=2**62)]


class Entry(BaseModel):
    """Of a tensor, in the header."""

    model_config = ConfigDict(strict=True, extra="forbid")
    dtype: Literal["F64", "F32", "F16", "BF16"]
    shape: Annotated[list[Count], Field(max_length=8)]
    data_offsets: Annotated[list[Count], Field(min_length=2, max_length=2)]


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
    for name, fields in header.items():
        try:
            entry = Entry.model_validate(fields)
        except ValidationError:
            reason = f"the tensor {name[:200]!r} has no kind of number, shape and place that a weight may have"
            raise refuse(reason) from None
        begin, end = entry.data_offsets
        if end - begin != math.prod(entry.shape) * BYTES[entry.dtype]:
            raise refuse(f"the tensor {name[:200]!r} of shape {entry.shape} cannot lie in {end - begin:,} bytes")
        shapes[name] = tuple(entry.shape)
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
