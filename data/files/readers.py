"""Rows of local files, each with its number: JSON, JSONL, CSV and Parquet. Broken rows are named, never skipped.

Readers stream, except for JSON lists: they hold a line or a batch, whatever the size of the file. A defect of one row
is raised, or handed to `report` when the caller counts such rows. A defect of the whole file is always raised.

JSON is read strictly: keys given twice, NaN, numbers without end and broken text are refused.
"""

import csv
import json
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data.files.lines import (
    COMPRESSIONS,
    LONGEST_LINE,
    Defect,
    Numbered,
    Report,
    refuse,
    refuse_broken_text,
    text_lines,
)
from onebase.errors import DataError

LARGEST_LIST = 2 * 2**30
"""Bytes of a JSON list, unpacked: it is held as a whole."""

ESCAPE = "\\u"
"""Only escapes can write broken text: raw bytes of it are not UTF-8, or were refused with the line."""

BLANK = " \t\r\n"
"""White space in JSON."""
_BLANKS = re.compile(f"[{BLANK}]*")

Reader = Callable[..., Numbered]
"""Rows of a file with their numbers: reader(path, *, longest, report)."""


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise Defect(f"the key '{twice}' is given twice")
    return row


def _no_constant(name: str) -> None:
    raise Defect(f"{name} is not JSON")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise Defect("a number is too large for a 64-bit float")
    return number


STRICT = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite)
LENIENT = json.JSONDecoder()


def _reason_of_defect(error: Exception) -> str:
    """Why `STRICT` refuses a value that is well-formed, or that ends beyond what it can read."""
    if isinstance(error, Defect):
        return str(error)
    is_deep = isinstance(error, RecursionError)  # int() refuses more than 4,300 digits
    return "lists or objects are nested too deeply" if is_deep else "a whole number has thousands of digits"


def _reason_of(error: json.JSONDecodeError) -> str:
    """What is wrong, without the place that the library's message ends in."""
    return error.msg.removesuffix(" starting at").removesuffix(" at")


def _after_blanks(text: str, start: int) -> int:
    match = _BLANKS.match(text, start)
    assert match is not None, "the pattern matches nothing too"
    return match.end()


def read_jsonl(path: Path, *, longest: int = LONGEST_LINE, report: Report | None = None) -> Numbered:
    """One JSON value a line; blank lines are skipped."""
    for number, line in text_lines(path, longest=longest, report=report):
        start = len(line) - len(line.lstrip(BLANK))
        if start == len(line):
            continue
        try:
            row, end = STRICT.raw_decode(line, start)
            if ESCAPE in line:
                refuse_broken_text(row)
            if line[end:].strip(BLANK):
                raise json.JSONDecodeError("Extra data", line, _after_blanks(line, end))
        except json.JSONDecodeError as error:
            refuse(_malformed_line(line, error, path, number), report)
        except (ValueError, RecursionError) as error:
            refuse(DataError(f"{path}:{number}: {_reason_of_defect(error)}. Fix or remove the line."), report)
        else:
            yield number, row


def _malformed_line(line: str, error: json.JSONDecodeError, path: Path, number: int) -> DataError:
    # What is missing is missing behind the last character, not behind the line's end.
    place = f"{path}:{number}:{min(error.pos, len(line.rstrip(BLANK))) + 1}"
    if number == 1 and line.lstrip(BLANK).startswith("[") and not line.rstrip(BLANK).endswith("]"):
        return DataError(f"{place}: the file is one JSON list, not one row per line. End its name in .json.")
    if number == 1 and line.strip(BLANK) == "{":
        return DataError(f"{place}: a row spans several lines. Write one row per line, or a list of rows as .json.")
    if "\r" in line.rstrip(BLANK):
        return DataError(f"{place}: lines end with lone carriage returns. Save the file with line feeds.")
    return DataError(f"{place}: not valid JSON: {_reason_of(error)}. Fix or remove the line.")


def read_json(path: Path, *, longest: int = LONGEST_LINE, report: Report | None = None) -> Numbered:
    """The elements of a list, numbered from 1. A file of one object, such as a task with all its instances, is one
    row.

    Malformed JSON always ends the reading: nobody can say where the next row would begin.
    """
    text = _whole_text(path)
    position, number, has_ended = _after_blanks(text, 0), 0, False
    is_list = text[position : position + 1] == "["
    if is_list:
        position = _after_blanks(text, position + 1)
        has_ended = text[position : position + 1] == "]"
    elif text[position : position + 1] != "{":
        raise _no_list(text, position, path)
    while not has_ended:
        number += 1
        value, position = _element(text, position, number, path, longest, report)
        if value is not _DEFECTIVE:
            yield number, value
        position = _after_blanks(text, position)
        has_ended = not is_list or _is_end(text, position, path)
        position = position if has_ended else _after_blanks(text, position + 1)
    position = _after_blanks(text, position + 1) if is_list else position
    if position < len(text):
        of_list = "the list's end. Remove it, or join the lists."
        of_row = "the first row. Write a list, or one row per line as .jsonl."
        raise DataError(f"{_place(text, position, path)}: there is more after {of_list if is_list else of_row}")


def _whole_text(path: Path) -> str:
    """The text of a file up to LARGEST_LIST bytes."""
    too_large = DataError(
        f"{path}: a JSON list is held as a whole, and this one is over {LARGEST_LIST >> 30} GiB. Write one row "
        f"per line: jq -c '.[]' {path.name} > {path.stem}.jsonl"
    )
    if path.stat().st_size > LARGEST_LIST:  # first: a line that is too long has an error of its own
        raise too_large
    lines: list[str] = []
    size = 0
    for _, line in text_lines(path, longest=LARGEST_LIST):
        lines.append(line)
        size += len(line) if line.isascii() else len(line.encode())
        if size > LARGEST_LIST:  # what was compressed
            raise too_large
    return "".join(lines)


def _place(text: str, position: int, path: Path) -> str:
    """path:line:column of a position."""
    return f"{path}:{text.count(chr(10), 0, position) + 1}:{position - text.rfind(chr(10), 0, position)}"


_DEFECTIVE = object()


def _element(text: str, start: int, number: int, path: Path, longest: int, report: Report | None) -> tuple[Any, int]:
    """The row that begins at `start`, and where it ends; _DEFECTIVE where its defect was reported."""
    try:
        value, end = STRICT.raw_decode(text, start)
        if text.find(ESCAPE, start, end) >= 0:
            refuse_broken_text(value)
    except json.JSONDecodeError as error:
        if error.msg.startswith("Unterminated") and len(text) - start > longest:
            raise _too_long(text, start, number, path, longest) from None
        place = _place(text, error.pos, path)
        raise DataError(f"{place}: not valid JSON: {_reason_of(error)}. Fix the file.") from None
    except (ValueError, RecursionError) as error:
        reason = _reason_of_defect(error)
        try:
            _, end = LENIENT.raw_decode(text, start)
        except (ValueError, RecursionError):
            raise DataError(f"{_place(text, start, path)}: {reason}. Fix the file.") from None
        refuse(DataError(f"{path}:{number}: {reason}. Fix or remove the row."), report)
        value = _DEFECTIVE
    if end - start > longest:
        raise _too_long(text, start, number, path, longest)
    return value, end


def _too_long(text: str, start: int, number: int, path: Path, longest: int) -> DataError:
    return DataError(
        f"{_place(text, start, path)}: row {number} is over {longest} characters, or its end is missing. "
        "Fix the file, or raise `longest_line`."
    )


def _is_end(text: str, position: int, path: Path) -> bool:
    """Whether the sign behind a row closes the list. DataError where it is neither a bracket nor a comma."""
    sign = text[position : position + 1]
    if sign not in (",", "]"):
        problem = f"found {sign!r}" if sign else "the file ends: it is cut off"
        raise DataError(f"{_place(text, position, path)}: expected ',' or ']' after a row, {problem}. Fix the file.")
    following = _after_blanks(text, position + 1)
    if sign == "," and text[following : following + 1] == "]":
        raise DataError(f"{_place(text, following, path)}: a comma before the list's end. Remove it.")
    return sign == "]"


def _no_list(text: str, start: int, path: Path) -> DataError:
    if start == len(text):
        return DataError(f"{path}:1: the file is empty; expected a list of rows.")
    sign = "text" if text[start] == '"' else repr(text[start])
    return DataError(
        f"{_place(text, start, path)}: expected a list of rows, found {sign}. Name a file of one row per line .jsonl."
    )


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
    """Rows numbered from 1, read in batches; pyarrow is imported for such a file alone."""
    from data.files import parquet

    return parquet.read(path, longest=longest, report=report)


READERS: dict[str, Reader] = {
    ".jsonl": read_jsonl,
    ".json": read_json,
    ".csv": read_csv,
    ".parquet": read_parquet,
}
"""By the ending of the name; all but Parquet may have .gz or .zst behind it."""


def why_no_file(path: Path) -> str:
    """What to say of a path that holds no plain file."""
    kind = "a folder, not a file" if path.is_dir() else "not a plain file"
    return f"{path} is {kind}" if path.exists() else f"there is no file {path}"


def reader_of(path: Path) -> Reader | None:
    """The reader for a file's name; None when files of its kind are not read."""
    ending = path.suffix.lower()
    if ending not in COMPRESSIONS:
        return READERS.get(ending)
    ending = path.with_suffix("").suffix.lower()
    return READERS.get(ending) if ending != ".parquet" else None
