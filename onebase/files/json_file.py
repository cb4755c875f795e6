"""JSON files that may come from a stranger: refused quickly, by name, where they are not what they should be."""

import json
import math
import stat
from pathlib import Path
from typing import Any

from onebase.errors import RecordError

LARGEST = 8 * 2**20
"""Bytes of a file that is read into memory whole."""
DEEPEST = 64
"""Lists and objects within each other: a recipe has some ten."""


def read_object(path: Path, *, largest: int = LARGEST, deepest: int = DEEPEST) -> tuple[dict[str, Any], bytes]:
    """The one JSON object of a file, and the file's bytes.

    RecordError, with the file's name first, for a link, too many bytes, keys given twice, NaN, broken text, deep
    nesting, and anything else but a JSON object.
    """
    raw = read_bytes(path, largest=largest)
    return parse_object(raw, path, deepest=deepest), raw


def read_bytes(path: Path, *, largest: int = LARGEST) -> bytes:
    """All of a plain file; RecordError for a link, a device and the like, and for a file that is too large."""
    try:
        status = path.lstat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a link" if stat.S_ISLNK(status.st_mode) else "not a plain file"
            raise RecordError(f"{path}: is {kind}. Put the file itself there.")
        if status.st_size > largest:
            raise RecordError(f"{path}: has {status.st_size:,} bytes, and at most {largest:,} are read. It was edited.")
        with path.open("rb") as stream:
            raw = stream.read(status.st_size + 1)  # no more: room for all of it is taken first
    except OSError as error:
        raise RecordError(f"{short_path(path)}: cannot be read ({error.strerror}).") from None
    if len(raw) > status.st_size:
        raise RecordError(f"{path}: grows while it is read. Wait until nobody writes to it.")
    return raw


def parse_object(raw: bytes, path: Path, *, deepest: int = DEEPEST) -> dict[str, Any]:
    """The object in `raw`, which `path` has named. RecordError as `read_object`."""

    def refuse(reason: str) -> RecordError:
        return RecordError(f"{path}: not valid JSON ({reason}): damaged or edited. Train the stage again.")

    try:
        content = _STRICT.decode(raw.decode("utf-8"))
    except RecursionError:
        raise refuse("lists or objects are nested too deeply") from None
    except ValueError as error:
        raise refuse(str(error)) from None
    if not isinstance(content, dict):
        raise refuse(f"an object with keys is expected, and it is a {type(content).__name__}")
    if _depth_exceeds(content, deepest):
        raise refuse(f"lists or objects are nested more than {deepest} deep")
    try:
        # Bytes of half a pair are not UTF-8: only escapes can write it.
        json.dumps(content if b"\\u" in raw else None, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise refuse("a text holds half of a surrogate pair") from None
    return content


def short_path(path: Path) -> str:
    """A path as an error names it: one of thousands of letters in part."""
    text = str(path)
    return text if len(text) <= 300 else f"{text[:150]}...{text[-50:]} ({len(text):,} letters)"


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        seen = set[str]()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise ValueError(f"the key {twice[:100]!r} is given twice")
    return content


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError("a number is too large")
    return number


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


_STRICT = json.JSONDecoder(object_pairs_hook=_no_duplicates, parse_constant=_no_constant, parse_float=_finite)


def _depth_exceeds(content: Any, deepest: int) -> bool:
    level = [content]
    for _ in range(deepest):
        values = [inner for outer in level for inner in (outer.values() if isinstance(outer, dict) else outer)]
        level = [value for value in values if isinstance(value, dict | list)]
        if not level:
            return False
    return True
