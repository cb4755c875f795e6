"""How much memory a Parquet file may take: repeated values cost a file nothing, and a reader all that they stand for.

Three bounds, none of them on honest files: what a row group says of itself before it is read; texts stay in the file's
dictionary until a row needs them; and rows become Python's a few at a time, by how long they are.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.lines import Report, refuse
from onebase.errors import DataError

SMALL = 128 * 2**20
"""Bytes of a row group, unpacked, that are read whatever they were packed to."""
PACKING = 100
"""Bytes that one byte of the file may become beyond that. Text packs to a tenth, logs to a fiftieth."""
NUMBER = 8
"""Bytes of a value in a list, which may be repeated as often as its column says."""


def leaf_paths(file: Any) -> list[str]:
    """The columns that hold texts, each by its whole path."""
    schema = file.schema
    columns = [schema.column(index) for index in range(len(schema.names))]
    return [one.path for one in columns if one.physical_type == "BYTE_ARRAY"]


def require_honest_size(file: Any, columns: list[str], path: Path, longest: int) -> None:
    """DataError where a row group that is to be read unpacks to far more than the file holds.

    columns: names of the top-level columns that are read. longest: bytes that a row may have.
    """
    for number in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(number)
        read = [group.column(index) for index in range(group.num_columns)]
        read = [(index, one) for index, one in enumerate(read) if one.path_in_schema.split(".")[0] in columns]
        unpacked = sum(_unpacked(one, file.schema.column(index)) for index, one in read)
        packed = sum(one.total_compressed_size for _, one in read)
        if unpacked > max(SMALL, longest) and unpacked > PACKING * packed:
            raise DataError(
                f"{path}: row group {number + 1} of {file.metadata.num_row_groups} unpacks from {packed:,} bytes to "
                f"{unpacked:,}: over {PACKING} to 1, which is taken for damage. If it is sound, write it anew in "
                "smaller row groups, or as .jsonl."
            )


def _unpacked(chunk: Any, column: Any) -> int:
    """Bytes of a column, as it says itself: a list's values may be repeated, a flat column's come a batch at a time."""
    width = column.length if column.physical_type == "FIXED_LEN_BYTE_ARRAY" else NUMBER
    repeated = column.max_repetition_level > 0 or width > NUMBER
    return max(chunk.total_uncompressed_size, chunk.num_values * width if repeated else 0)


def rows_of(batch: Any, number: int, path: Path, *, longest: int, report: Report | None) -> Iterator[tuple[int, Any]]:
    """The batch's rows with their numbers, of which the first is `number`; those over `longest` bytes are refused."""
    if bytes_of(batch) <= longest:
        yield from enumerate(batch.to_pylist(), start=number)
    elif batch.num_rows == 1:
        refuse(
            DataError(f"{path}:{number}: the row is over {longest} bytes. Is that a mistake? Else raise `longest_line`."),
            report,
        )
    else:
        half = batch.num_rows // 2
        yield from rows_of(batch.slice(0, half), number, path, longest=longest, report=report)
        yield from rows_of(batch.slice(half), number + half, path, longest=longest, report=report)


def bytes_of(batch: Any) -> int:
    """Bytes of its texts, counted as often as they come, and of all other values."""
    return sum(_bytes_of(column) for column in batch.columns)


def _bytes_of(array: Any) -> int:
    import pyarrow.compute
    import pyarrow.types as types

    kind = array.type
    if types.is_dictionary(kind):
        lengths = pyarrow.compute.binary_length(array.dictionary)
        return pyarrow.compute.sum(lengths.take(array.indices)).as_py() or 0
    if types.is_struct(kind):
        return sum(map(_bytes_of, array.flatten()))
    if types.is_map(kind):
        return sum(_bytes_of(part) for part in (array.keys, array.items)) if len(array) else 0
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return _bytes_of(array.flatten())
    return array.nbytes
