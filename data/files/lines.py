"""Lines of text files, plain or compressed, one at a time: memory holds one line, whatever the size of the file.

Everything that is not text is refused by name: other encodings, compressed or binary files under a text file's name,
damaged streams, NUL bytes, lines without end.
"""

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

from onebase.errors import DataError

LONGEST_LINE = 16 * 2**20
"""Bytes of a line (or of a row in a JSON list) beyond which it is taken for damage."""

Report = Callable[[DataError], None]
"""Takes the defect of one row; reading continues with the next. Without a report the defect is raised."""

Numbered = Iterator[tuple[int, Any]]
"""Rows of a file with their numbers."""

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


def _open_gzip(path: Path, mode: Literal["rb"]) -> io.BufferedReader:
    return io.BufferedReader(gzip.GzipFile(path, mode))


def _open_zstd(path: Path, mode: Literal["rb"]) -> io.BufferedReader:
    import pyarrow

    unpacked: Any = pyarrow.input_stream(str(path), compression="zstd")
    return io.BufferedReader(unpacked)


COMPRESSIONS: dict[str, Callable[[Path, Literal["rb"]], io.BufferedReader]] = {".gz": _open_gzip, ".zst": _open_zstd}
"""What opens a compressed file, by the last ending of its name."""


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
    try:
        stream = COMPRESSIONS.get(path.suffix.lower(), open)(path, "rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror or error}).") from None
    number, has_ended = 0, True
    try:
        for raw in iter(lambda: stream.readline(longest + 1), b""):
            is_rest, has_ended = not has_ended, raw.endswith(b"\n")
            if is_rest:  # of a line that is too long
                continue
            number += 1
            if number == 1 and (kinds := [kind for signature, kind in _SIGNATURES if raw.startswith(signature)]):
                raise DataError(f"{path}:1: not text: it is {kinds[0]}.")
            if len(raw) > longest:
                what = f"the line is over {longest} bytes. Is it one line by mistake? Else raise `longest_line`."
                refuse(DataError(f"{path}:{number}: {what}"), report)
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
    except (EOFError, OSError, zlib.error) as error:
        raise _unreadable(error, f"{path}:{number + has_ended}") from None
    finally:
        stream.close()


def _unreadable(error: Exception, place: str) -> DataError:
    """Why a stream, which may be compressed, cannot be read on."""
    if isinstance(error, EOFError) or "Truncated" in str(error):
        kind = "gzip" if isinstance(error, EOFError) else "zstd"
        return DataError(f"{place}: the {kind} stream ends early: the file is cut off. Fetch it again.")
    is_gzip = isinstance(error, gzip.BadGzipFile | zlib.error)
    problem = f"not a sound gzip file ({error})" if is_gzip else f"cannot be read ({error})"
    return DataError(f"{place}: {problem}. Fetch it again, or correct its name.")


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
