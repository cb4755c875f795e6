"""Lines of text files, plain or compressed, one at a time: memory holds one line, whatever the size of the file.

Everything that is not text is refused by name: other encodings, compressed or binary files under a text file's name,
damaged streams, NUL bytes, lines without end.
"""

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from onebase.errors import DataError

LONGEST_LINE = 16 * 2**20
"""Bytes of a line (or of a row in a JSON list) beyond which it is taken for damage."""

Report = Callable[[DataError], None]
"""Takes the defect of one row; reading continues with the next. Without a report the defect is raised."""

Numbered = Iterator[tuple[int, Any]]
"""Rows of a file with their numbers."""

COMPRESSIONS = (".gz", ".zst")

BYTE_ORDER_MARK = b"\xef\xbb\xbf"

# First bytes of files that are not UTF-8 text, and what to do about them.
_SIGNATURES: tuple[tuple[bytes, str], ...] = (
    (b"\x1f\x8b", "compressed with gzip, though its name does not say so; end it in .gz"),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd, though its name does not say so; end it in .zst"),
    (b"BZh", "compressed with bzip2, which is not read; unpack it, or use gzip or zstd"),
    (b"\xfd7zXZ\0", "compressed with xz, which is not read; unpack it, or use gzip or zstd"),
    (b"PK\x03\x04", "a zip archive (or a spreadsheet); unpack it"),
    (b"PAR1", "a Parquet file; end its name in .parquet"),
    (b"ARROW1", "an Arrow file; write it as .parquet or .jsonl"),
    (b"\xff\xfe\0\0", "UTF-32; save it as UTF-8"),
    (b"\0\0\xfe\xff", "UTF-32; save it as UTF-8"),
    (b"\xff\xfe", "UTF-16; save it as UTF-8"),
    (b"\xfe\xff", "UTF-16; save it as UTF-8"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself; fetch it with `git lfs pull`"),
    (b"<!DOCTYPE", "a web page; the download gave a page instead of the file"),
    (b"<html", "a web page; the download gave a page instead of the file"),
)


class Defect(ValueError):
    """What is wrong with a value that is well-formed but not acceptable."""


def refuse(error: DataError, report: Report | None) -> None:
    """Hand a row's defect to `report`; raise it without one."""
    if report is None:
        raise error from None
    report(error)


@contextmanager
def open_bytes(path: Path) -> Iterator[io.BufferedReader]:
    """The file's content, unpacked when its name ends in .gz or .zst."""
    suffix = path.suffix.lower()
    try:
        stream: Any
        if suffix == ".gz":
            stream = io.BufferedReader(gzip.GzipFile(path, "rb"))
        elif suffix == ".zst":
            import pyarrow

            stream = io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
        else:
            stream = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror or error}).") from None
    with stream:
        yield stream


def read_line(stream: io.BufferedReader, size: int, path: Path, number: int) -> bytes:
    """The next line, or its first `size` bytes; DataError where a compressed stream is damaged."""
    try:
        return stream.readline(size)
    except EOFError:
        raise DataError(f"{path}:{number}: the gzip stream ends early: the file is cut off. Fetch it again.") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path}:{number}: not a sound gzip file ({error}). Fetch it again, or correct its name."
        ) from None
    except OSError as error:
        if "Truncated" in str(error):
            raise DataError(
                f"{path}:{number}: the zstd stream ends early: the file is cut off. Fetch it again."
            ) from None
        raise DataError(f"{path}:{number}: cannot be read ({error}). Fetch it again, or correct its name.") from None


def not_text(raw: bytes, path: Path, number: int) -> DataError:
    """What makes a line's bytes something other than text, with its column."""
    start = raw.find(b"\0")
    reason = "contains a NUL byte, so it is not text (UTF-16, or a damaged file?). Save it as UTF-8."
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        if start < 0 or error.start < start:
            start = error.start
            surrogate = raw[start] == 0xED and raw[start + 1 : start + 2] >= b"\xa0"
            reason = "half of a surrogate pair, as in CESU-8" if surrogate else error.reason
            reason = f"not UTF-8 ({reason}). Save the file as UTF-8."
    column = len(raw[:start].decode(errors="replace")) + 1
    return DataError(f"{path}:{number}:{column}: {reason}")


def text_lines(path: Path, *, longest: int = LONGEST_LINE, report: Report | None = None) -> Iterator[tuple[int, str]]:
    """Every line with its number from 1 and its line end; a byte order mark is removed."""
    number = 0
    with open_bytes(path) as stream:
        while raw := read_line(stream, longest + 1, path, number + 1):
            number += 1
            if number == 1 and (kinds := [kind for signature, kind in _SIGNATURES if raw.startswith(signature)]):
                raise DataError(f"{path}:1: not text: it is {kinds[0]}.")
            if len(raw) > longest:
                _skip_line(stream, raw, path, number)
                refuse(_too_long(path, number, longest), report)
                continue
            # Files joined with `cat` have byte order marks in their middle.
            raw = raw.removeprefix(BYTE_ORDER_MARK)
            try:
                text = raw.decode()
            except UnicodeDecodeError:
                text = "\0"
            if "\0" in text:
                refuse(not_text(raw, path, number), report)
            else:
                yield number, text


def _too_long(path: Path, number: int, longest: int) -> DataError:
    return DataError(
        f"{path}:{number}: the line is over {longest} bytes. Is it one line by mistake? Else raise `longest_line`."
    )


def _skip_line(stream: io.BufferedReader, raw: bytes, path: Path, number: int) -> None:
    while raw and not raw.endswith(b"\n"):
        raw = read_line(stream, 2**20, path, number)


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
