"""How much memory a Parquet file may take: repeated values take hardly any space in a file, but all of their size in a
reader's memory.

Three bounds, which no normal file reaches. A row group's own size is checked before it is read. Texts stay in the
file's dictionary until a row needs them. Rows become Python's a few at a time, by their length.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.compute
import pyarrow.types as types
from pyarrow.parquet import ParquetFile

from data.files.lines import Defect, Numbered, Report, refuse, refuse_broken_text
from onebase.errors import DataError

SMALL = 128 * 2**20
"""Bytes of a row group, unpacked, that are held at once, whatever they were packed to."""
PACKING = 100
"""Bytes that one byte of the file may become beyond that. Text packs to a tenth, logs to a fiftieth."""
NUMBER = 8
"""Bytes of a value in a list, which may be repeated as often as its column says."""
BATCH = 1000
"""Rows that become Python's at once."""
HELD = 100 * BATCH
"""Rows that are held at once, their texts in a dictionary."""
BINARY = (types.is_binary, types.is_large_binary, types.is_fixed_size_binary)
"""Types of columns that are left out."""


def read(path: Path, *, longest: int, report: Report | None) -> Numbered:
    """Rows numbered from 1, read in batches. Times and decimals come as text; binary columns are left out.

    Refused: a file that would take far more memory than its length, and a row over `longest` bytes.
    """
    number = 0
    try:
        for number, row in _rows(path, longest, report):
            try:
                refuse_broken_text(row)
            except Defect as defect:
                refuse(DataError(f"{path}:{number}: {defect}. Fix or remove the row."), report)
            else:
                yield number, row
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {str(error).splitlines()[0].rstrip('.')}.") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{number + 1}: text in this row, or soon after, is not UTF-8 ({error.reason})."
        ) from None


def _rows(path: Path, longest: int, report: Report | None) -> Numbered:
    with ParquetFile(path) as file:
        columns, first = _columns(file.schema_arrow, path), 1
    for batch in batches_of(path, columns, longest=longest):
        for start, part in parts_of(batch, first, path, longest=longest, report=report):
            yield from enumerate(_as_text(part).to_pylist(), start=start)
        first += batch.num_rows


def _columns(schema: Any, path: Path) -> list[str]:
    for name in schema.names:
        if schema.names.count(name) > 1:
            raise DataError(f"{path}: the column '{name}' is there twice. Rename one.")
    return [field.name for field in schema if not any(is_binary(field.type) for is_binary in BINARY)]


def _as_text(batch: Any) -> Any:
    """The batch with columns of types that JSON lacks cast to text, and with texts out of their dictionaries."""
    for index, field in enumerate(batch.schema):
        if types.is_dictionary(field.type):
            batch = batch.set_column(index, field.name, batch.column(index).dictionary_decode())
        if types.is_temporal(field.type) or types.is_decimal(field.type):
            batch = batch.set_column(index, field.name, batch.column(index).cast(pyarrow.string()))
    return batch


def batches_of(path: Path, columns: list[str], *, longest: int) -> Iterator[Any]:
    """The file's rows in batches, of these top-level columns; texts may be in dictionaries. DataError where a row group
    unpacks to far more than the file holds.

    longest: bytes that a row may have.
    """
    with ParquetFile(path) as plain:
        schema, groups = plain.schema, plain.metadata.num_row_groups
        leaves = [schema.column(index) for index in range(len(schema.names))]
        texts = [leaf.path for leaf in leaves if leaf.physical_type == "BYTE_ARRAY"]
        sizes = [_unpacked(plain, number, leaves, columns, path, longest) for number in range(groups)]
        with ParquetFile(path, read_dictionary=texts) as packed:
            for number, size in enumerate(sizes):
                is_small = size <= max(SMALL, longest)
                file, rows = (packed, HELD) if is_small else (plain, _rows_at_once(packed, number, columns))
                yield from file.iter_batches(batch_size=rows, row_groups=[number], columns=columns)


def _unpacked(file: Any, number: int, leaves: list[Any], columns: list[str], path: Path, longest: int) -> int:
    """Bytes of a row group, as it says itself; DataError where they are far more than it takes in the file."""
    group = file.metadata.row_group(number)
    unpacked = packed = 0
    for index, leaf in enumerate(leaves):
        chunk = group.column(index)
        if leaf.path.split(".")[0] not in columns:
            continue
        width = leaf.length if leaf.physical_type == "FIXED_LEN_BYTE_ARRAY" else NUMBER
        # The values of a flat column come a batch at a time; those of one list all at once.
        repeated = leaf.max_repetition_level > 0 or width > NUMBER
        unpacked += max(chunk.total_uncompressed_size, chunk.num_values * width if repeated else 0)
        packed += chunk.total_compressed_size
    if unpacked > max(SMALL, longest) and unpacked > PACKING * packed:
        raise DataError(
            f"{path}: row group {number + 1} of {file.metadata.num_row_groups} unpacks from {packed:,} bytes to "
            f"{unpacked:,}: over {PACKING} to 1, which is taken for damage. If it is sound, write it again in smaller "
            "row groups, or as .jsonl."
        )
    return unpacked


def _rows_at_once(packed: Any, number: int, columns: list[str]) -> int:
    """Rows of a large row group that fit into SMALL even where each is the longest text of its dictionaries."""
    first = next(packed.iter_batches(batch_size=1, row_groups=[number], columns=columns), None)
    longest = sum(map(_longest_text, first.columns)) if first is not None else 0
    return max(1, min(BATCH, SMALL // max(1, longest)))


def _longest_text(array: Any) -> int:
    if types.is_dictionary(array.type):
        return int(_compute("max", _compute("binary_length", array.dictionary)).as_py() or 0)
    if types.is_struct(array.type):
        return sum(map(_longest_text, array.flatten()))
    if types.is_map(array.type):
        return _longest_text(array.keys) + _longest_text(array.items)
    return _longest_text(array.flatten()) if _is_list(array.type) else NUMBER


def _is_list(kind: Any) -> bool:
    return types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)


def parts_of(batch: Any, number: int, path: Path, *, longest: int, report: Report | None) -> Iterator[tuple[int, Any]]:
    """The batch in parts of BATCH rows or `longest` bytes, each with the number of its first row, the batch's being
    `number`. Single rows over `longest` bytes are refused."""
    sizes = sum((bytes_of(column) for column in batch.columns), np.zeros(batch.num_rows, dtype=np.int64))
    start = 0
    while start < batch.num_rows:
        ahead = np.cumsum(sizes[start : start + BATCH])
        rows = int(np.searchsorted(ahead, longest, side="right"))
        if rows:
            yield number + start, batch.slice(start, rows)
        else:
            what = f"the row is over {longest} bytes. Is that a mistake? Else raise `longest_line`."
            refuse(DataError(f"{path}:{number + start}: {what}"), report)
        start += max(1, rows)


def bytes_of(array: Any) -> Any:
    """Bytes of each element: of its texts, however often they are repeated, and of all other values."""
    kind = array.type
    if types.is_dictionary(kind):
        lengths = _compute("binary_length", array.dictionary).fill_null(0)
        return _numpy(lengths.take(array.indices))
    if types.is_struct(kind):
        return sum(map(bytes_of, array.flatten()), np.zeros(len(array), dtype=np.int64))
    if types.is_map(kind):
        return _sums(bytes_of(array.keys) + bytes_of(array.items), np.diff(array.offsets.to_numpy()))
    if _is_list(kind):
        return _sums(bytes_of(array.flatten()), _numpy(_compute("list_value_length", array)))
    if types.is_string(kind) or types.is_large_string(kind) or types.is_binary(kind) or types.is_large_binary(kind):
        return _numpy(_compute("binary_length", array))
    return np.full(len(array), -(-array.nbytes // max(1, len(array))), dtype=np.int64)


def _compute(name: str, array: Any) -> Any:
    """One of Arrow's functions by its name: pyarrow makes them as it is imported, where no type checker sees them."""
    return pyarrow.compute.call_function(name, [array])


def _numpy(numbers: Any) -> Any:
    return numbers.fill_null(0).to_numpy(zero_copy_only=False).astype(np.int64)


def _sums(sizes: Any, counts: Any) -> Any:
    """The sum of each list's own elements, where the lists lie one after the other. counts: elements of each."""
    ahead = np.concatenate([[0], np.cumsum(sizes)])
    ends = np.cumsum(counts)
    return ahead[ends] - ahead[ends - counts]
