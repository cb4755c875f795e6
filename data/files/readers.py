"""Rows of local files, each with its line: JSON, JSONL, CSV and Parquet. Broken rows are named, never skipped.

Every reader streams: it holds a line, a row or a batch, whatever the size of the file. A defect of one row is raised,
or handed to `report` when the caller counts such rows; a defect of the whole file is always raised.
"""

import csv
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data.files.json_list import rows_of_list
from data.files.lines import COMPRESSIONS, LONGEST_LINE, Report, refuse, text_lines
from data.files.parquet import batches_of, parts_of
from data.files.strict_json import BLANK, Defect, parse_line, refuse_broken_text
from onebase.errors import DataError

Numbered = Iterator[tuple[int, Any]]


Reader = Callable[..., Numbered]
"""Rows of a file with their numbers: reader(path, *, longest, report)."""


def read_jsonl(path: Path, *, longest: int = LONGEST_LINE, report: Report | None = None) -> Numbered:
    """One JSON value a line; blank lines are passed over."""
    source = str(path)
    for number, line in text_lines(path, longest=longest, report=report):
        if not line.strip(BLANK):
            continue
        try:
            row = parse_line(line, source, number)
        except DataError as error:
            refuse(error, report)
        else:
            yield number, row


def read_json(path: Path, *, longest: int = LONGEST_LINE, report: Report | None = None) -> Numbered:
    """A list of rows; its elements are numbered from 1."""
    return rows_of_list(path, longest=longest, report=report)


def read_csv(path: Path, *, longest: int = LONGEST_LINE, report: Report | None = None) -> Numbered:
    """Rows under a header line; numbered by the line they end on. Empty cells count as absent."""
    csv.field_size_limit(longest)
    # No report for the lines: a cell may go over several, so nobody can say which row a broken one belongs to.
    reader = csv.DictReader((line for _, line in text_lines(path, longest=longest)), strict=True)
    try:
        if reader.fieldnames == []:
            raise DataError(f"{path}:1: the header is a blank line. Remove it.")
        _check_header(reader.fieldnames or (), path)
        for row in reader:
            if None in row or None in row.values():
                where = f"{path}:{reader.line_num}"
                refuse(DataError(f"{where}: the row has another number of cells than the header."), report)
                continue
            yield reader.line_num, {key: value for key, value in row.items() if value != ""}
    except csv.Error as error:
        raise DataError(f"{path}:{reader.reader.line_num}: not valid CSV: {error}.") from None


def _check_header(names: Sequence[str], path: Path) -> None:
    for name in names:
        if not name.strip():
            raise DataError(f"{path}:1: a column of the header has no name. Name it or remove it.")
        if list(names).count(name) > 1:
            raise DataError(f"{path}:1: the column '{name}' is there twice. Rename one.")
    if len(names) == 1 and (separators := [sign for sign in ";\t|" if sign in names[0]]):
        raise DataError(f"{path}:1: the columns are separated by {separators[0]!r}. Save the file with commas.")


def read_parquet(path: Path, *, longest: int = LONGEST_LINE, report: Report | None = None) -> Numbered:
    """Rows numbered from 1, read in batches. Times and decimals come as text; binary columns are left out.

    Refused: a file that would take far more memory than its length (`data.files.parquet`), and a row over `longest`.
    """
    import pyarrow
    import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as file:
            columns, first = _columns(file.schema_arrow, path), 1
        for batch in batches_of(path, columns, longest=longest):
            for start, part in parts_of(batch, first, path, longest=longest, report=report):
                for number, row in enumerate(_as_text(part).to_pylist(), start=start):
                    try:
                        refuse_broken_text(row)
                    except Defect as defect:
                        refuse(DataError(f"{path}:{number}: {defect}. Mend or remove the row."), report)
                        continue
                    yield number, row
            first += batch.num_rows
    except (pyarrow.ArrowException, OSError) as error:
        raise DataError(f"{path}: not a readable Parquet file: {str(error).splitlines()[0].rstrip('.')}.") from None
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path}:{number + 1}: text in this row, or soon after, is not UTF-8 ({error.reason})."
        ) from None


def _columns(schema: Any, path: Path) -> list[str]:

    for name in schema.names:
        if schema.names.count(name) > 1:
            raise DataError(f"{path}: the column '{name}' is there twice. Rename one.")
    return [field.name for field in schema if not _is_binary(field.type)]


def _is_binary(kind: Any) -> bool:
    import pyarrow.types as types

    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_fixed_size_binary(kind)


def _as_text(batch: Any) -> Any:
    """The batch with columns of types that JSON lacks cast to text, and with texts out of their dictionaries."""
    import pyarrow
    import pyarrow.types as types

    for index, field in enumerate(batch.schema):
        if types.is_dictionary(field.type):
            batch = batch.set_column(index, field.name, batch.column(index).dictionary_decode())
        if types.is_temporal(field.type) or types.is_decimal(field.type):
            batch = batch.set_column(index, field.name, batch.column(index).cast(pyarrow.string()))
    return batch


READERS: dict[str, Reader] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
}
"""By the ending of the name; all but Parquet may have .gz or .zst behind it."""


def reader_of(path: Path) -> Reader | None:
    """The reader for a file's name; None when files of its kind are not read."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    packed = bool(suffixes) and suffixes[-1] in COMPRESSIONS
    if packed:
        suffixes.pop()
    ending = suffixes[-1] if suffixes else ""
    return None if packed and ending == ".parquet" else READERS.get(ending)
