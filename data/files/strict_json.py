"""JSON as the standard has it: keys given twice, NaN, endless numbers and broken text are refused, with their place."""

import json
import math
from collections.abc import Iterator
from typing import Any

from onebase.errors import DataError


class Defect(ValueError):
    """What is wrong with a value that is well-formed but not acceptable."""


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

BLANK = " \t\r\n"
"""White space as JSON has it."""


def scan(text: str, start: int = 0) -> tuple[Any, int]:
    """The value that begins at `start`, and where it ends; JSONDecodeError or Defect."""
    try:
        value, end = STRICT.raw_decode(text, start)
        # Only escapes can bring these in: raw ones are no UTF-8, or refused with the line.
        if text.find("\\u", start, end) >= 0:
            refuse_broken_text(value)
        return value, end
    except RecursionError:
        raise Defect("lists or objects are nested too deeply") from None
    except (json.JSONDecodeError, Defect):
        raise
    except ValueError:  # int() refuses more than 4,300 digits
        raise Defect("a whole number has thousands of digits") from None


def reason_of(error: json.JSONDecodeError) -> str:
    """What is wrong, without the place that the library's message ends in."""
    return error.msg.removesuffix(" starting at").removesuffix(" at")


def parse_line(line: str, source: str, number: int) -> Any:
    """The one value of a line; DataError with source, line and column."""
    start = len(line) - len(line.lstrip(BLANK))
    try:
        value, end = scan(line, start)
    except json.JSONDecodeError as error:
        raise _malformed(line, source, number, error.pos, reason_of(error)) from None
    except Defect as defect:
        raise DataError(f"{source}:{number}: {defect}. Mend or remove the line.") from None
    if end != len(line) and line[end:].strip(BLANK):
        after = end + len(line[end:]) - len(line[end:].lstrip(BLANK))
        raise _malformed(line, source, number, after, "Extra data")
    return value


def _malformed(line: str, source: str, number: int, position: int, reason: str) -> DataError:
    # What is missing is missing behind the last sign, not behind the line's end.
    place = f"{source}:{number}:{min(position, len(line.rstrip(BLANK))) + 1}"
    if number == 1 and line.lstrip(BLANK).startswith("[") and not line.rstrip(BLANK).endswith("]"):
        return DataError(f"{place}: the file is one JSON list, not a row a line. End its name in .json.")
    if number == 1 and line.strip(BLANK) == "{":
        return DataError(f"{place}: a row goes over several lines. Write one a line, or a list of them as .json.")
    if "\r" in line.rstrip(BLANK):
        return DataError(f"{place}: lines end with lone carriage returns. Save the file with line feeds.")
    return DataError(f"{place}: not valid JSON: {reason}. Mend or remove the line.")


def refuse_broken_text(value: Any) -> None:
    """Defect where a text in the value holds a NUL character or half of a surrogate pair."""
    for path, text in _texts(value, ""):
        if "\0" in text:
            raise Defect(f"{path or 'the text'} contains a NUL character")
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise Defect(f"{path or 'the text'} contains half of a surrogate pair")


def _texts(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, list):
        for index, element in enumerate(value):
            yield from _texts(element, f"{path}[{index}]")
    elif isinstance(value, dict):
        for key, element in value.items():
            yield f"a key of {path or 'the row'}", key
            yield from _texts(element, f"{path}.{key}" if path else ascii(key)[1:-1])
