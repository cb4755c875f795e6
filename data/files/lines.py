"""Lines of text files, plain or compressed, one at a time: memory holds one line, whatever the size of the file.

What is no text is refused by name: wrong encodings, compressed or binary files under a text file's name, damaged
streams, NUL bytes, lines without end.
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
"""Takes the defect of one row; reading goes on with the next. Without one the defect is raised."""

COMPRESSIONS = (".gz", ".zst")

BOM = b"\xef\xbb\xbf"

# What a file begins with when it is not text in UTF-8, and what to do about it.
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
        opened: Any
        if suffix == ".gz":
            opened = io.BufferedReader(gzip.GzipFile(path, "rb"))
        elif suffix == ".zst":
            import pyarrow

            opened = io.BufferedReader(pyarrow.input_stream(str(path), compression="zstd"))
        else:
            opened = path.open("rb")
    except OSError as error:
        raise DataError(f"{path}: cannot be opened ({error.strerror or error}).") from None
    with opened:
        yield opened


def read_bytes(stream: io.BufferedReader, size: int, path: Path, line: int, *, whole_lines: bool = False) -> bytes:
    """The next `size` bytes, or the next line up to as many; DataError where a compressed stream is damaged."""
    try:
        return stream.readline(size) if whole_lines else stream.read(size)
    except EOFError:
        raise DataError(f"{path}:{line}: the gzip stream ends early: the file is cut off. Fetch it again.") from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise DataError(
            f"{path}:{line}: not a sound gzip file ({error}). Fetch it again, or name it rightly."
        ) from None
    except OSError as error:
        if "Truncated" in str(error):
            raise DataError(
                f"{path}:{line}: the zstd stream ends early: the file is cut off. Fetch it again."
            ) from None
        raise DataError(f"{path}:{line}: cannot be read ({error}). Fetch it again, or name it rightly.") from None


def refuse_other_files(start: bytes, path: Path) -> None:
    """DataError when a file begins like something else than text in UTF-8."""
    for signature, what in _SIGNATURES:
        if start.startswith(signature):
            raise DataError(f"{path}:1: not text: it is {what}.")


def defect_of(raw: bytes) -> tuple[int, str] | None:
    """Column and name of what makes bytes no text; None when nothing does."""
    nul = raw.find(b"\0")
    if nul >= 0:
        column = len(raw[:nul].decode(errors="replace")) + 1
        return column, "contains a NUL byte, so it is not text (UTF-16, or a damaged file?). Save it as UTF-8."
    try:
        raw.decode()
    except UnicodeDecodeError as error:
        column = len(raw[: error.start].decode()) + 1
        if raw[error.start] == 0xED and raw[error.start + 1 : error.start + 2] >= b"\xa0":
            return column, "not UTF-8 (half of a surrogate pair, as CESU-8 has it). Save the file as UTF-8."
        return column, f"not UTF-8 ({error.reason}). Save the file as UTF-8."
    return None


def text_lines(path: Path, *, longest: int = LONGEST_LINE, report: Report | None = None) -> Iterator[tuple[int, str]]:
    """Every line with its number from 1 and its line end; a byte order mark is taken off."""
    with open_bytes(path) as stream:
        number = 0
        while raw := read_bytes(stream, longest + 1, path, number + 1, whole_lines=True):
            number += 1
            if number == 1:
                refuse_other_files(raw, path)
            if len(raw) > longest:
                _skip_line(stream, raw, path, number)
                refuse(_too_long(path, number, longest), report)
                continue
            # Files joined with `cat` have marks in their midst.
            raw = raw.removeprefix(BOM)
            try:
                text = raw.decode()
            except UnicodeDecodeError:
                text = None
            if text is None or "\0" in text:
                column, reason = defect_of(raw) or (1, "not text.")
                refuse(DataError(f"{path}:{number}:{column}: {reason}"), report)
                continue
            yield number, text


def _too_long(path: Path, number: int, longest: int) -> DataError:
    return DataError(
        f"{path}:{number}: the line is over {longest} bytes. Is it one line by mistake? Else raise `longest_line`."
    )


def _skip_line(stream: io.BufferedReader, raw: bytes, path: Path, number: int) -> None:
    while raw and not raw.endswith(b"\n"):
        raw = read_bytes(stream, 2**20, path, number, whole_lines=True)
