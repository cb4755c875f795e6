"""Rows of a JSON list, one at a time: a file of any size, on one line or many, in the memory of its longest row."""

import codecs
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.files.lines import LONGEST_LINE, Report, defect_of, open_bytes, read_bytes, refuse, refuse_other_files
from data.files.strict_json import BLANK, LENIENT, Defect, reason_of, scan
from onebase.errors import DataError

CHUNK = 2**16


class _Window:
    """The part of the text that is held: it grows until a row is whole, and what is done is let go."""

    def __init__(self, path: Path, stream: io.BufferedReader) -> None:
        self.path = path
        self.text = ""
        self.position = 0
        self.ended = False
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder("utf-8-sig")()
        self._line, self._column = 1, 1
        self._started = False

    @property
    def place(self) -> str:
        """path:line:column of the present position."""
        return self.place_of(self.position)

    def place_of(self, position: int) -> str:
        line, column = _advanced(self._line, self._column, self.text, position)
        return f"{self.path}:{line}:{column}"

    def grow(self, size: int = CHUNK) -> None:
        """Read on; DataError when the bytes are no text."""
        raw = read_bytes(self._stream, size, self.path, _advanced(self._line, 1, self.text, len(self.text))[0])
        if not self._started:
            refuse_other_files(raw, self.path)
            self._started = True
        self.ended = not raw
        pending = self._decoder.getstate()[0]
        defect = None
        try:
            text = self._decoder.decode(raw, final=self.ended)
        except UnicodeDecodeError:
            text, defect = "", defect_of(pending + raw)
        if "\0" in text:
            defect = defect_of(pending + raw)
        if defect is not None:
            offset, reason = defect
            self.text += (pending + raw).decode(errors="replace")[: offset - 1].removeprefix("\ufeff")
            raise DataError(f"{self.place_of(len(self.text))}: {reason}")
        self.text += text

    def forget(self) -> None:
        """Let go of the text before the position."""
        self._line, self._column = _advanced(self._line, self._column, self.text, self.position)
        self.text, self.position = self.text[self.position :], 0

    def next_sign(self) -> str:
        """The next character that is not blank, which stays; empty at the end."""
        while True:
            while self.position < len(self.text):
                if self.text[self.position] not in BLANK:
                    return self.text[self.position]
                self.position += 1
            if self.ended:
                return ""
            self.forget()
            self.grow()


def _advanced(line: int, column: int, text: str, position: int) -> tuple[int, int]:
    lines = text.count("\n", 0, position)
    if lines:
        return line + lines, position - text.rfind("\n", 0, position)
    return line, column + position


def rows_of_list(path: Path, *, longest: int = LONGEST_LINE, report: Report | None = None) -> Iterator[tuple[int, Any]]:
    """The elements of the list in a file, numbered from 1. A file of one object, such as a task with all its instances,
    is one row."""
    with open_bytes(path) as stream:
        window = _Window(path, stream)
        sign = window.next_sign()
        if sign == "{":
            yield from _only_row(window, longest, report)
            return
        if sign != "[":
            raise _no_list(window, sign)
        window.position += 1
        number = 0
        if window.next_sign() == "]":
            window.position += 1
        else:
            ended = False
            while not ended:
                number += 1
                value = _element(window, number, longest, report)
                if value is not _DEFECTIVE:
                    yield number, value
                ended = _after_element(window)
        if window.next_sign():
            raise DataError(f"{window.place}: there is more after the list's end. Remove it, or join the lists.")


def _only_row(window: _Window, longest: int, report: Report | None) -> Iterator[tuple[int, Any]]:
    value = _element(window, 1, longest, report)
    if window.next_sign():
        raise DataError(
            f"{window.place}: there is more after the first row. For one row a line end the name in .jsonl; else write "
            "a list."
        )
    if value is not _DEFECTIVE:
        yield 1, value


_DEFECTIVE = object()


def _element(window: _Window, number: int, longest: int, report: Report | None) -> Any:
    """The next element; _DEFECTIVE when it was reported. Malformed JSON always ends the reading: nothing says where
    the next element would begin."""
    window.next_sign()
    window.forget()
    while True:
        try:
            found, end = scan(window.text)
        except json.JSONDecodeError as error:
            if window.ended or _is_certain(error, window.text):
                raise DataError(
                    f"{window.place_of(error.pos)}: not valid JSON: {reason_of(error)}. Mend the file."
                ) from None
            found, end = _DEFECTIVE, len(window.text)
        except Defect as defect:
            try:
                _, end = LENIENT.raw_decode(window.text)
            except (ValueError, RecursionError):
                if window.ended or "nested" in str(defect):
                    raise DataError(f"{window.place}: {defect}. Mend the file.") from None
                end = len(window.text)
            found = _DEFECTIVE
            if end < len(window.text) or window.ended:
                refuse(DataError(f"{window.path}:{number}: {defect}. Mend or remove the row."), report)
                window.position = end
                return _DEFECTIVE
        # An element that ends with the text may go on: 12 and 345 are 12345.
        if end < len(window.text) or window.ended:
            window.position = end
            return found
        if len(window.text) > longest:
            raise DataError(
                f"{window.place}: row {number} is over {longest} characters, or its end is missing. "
                "Mend the file, or raise `longest_line`."
            )
        window.grow(max(CHUNK, len(window.text)))


def _is_certain(error: json.JSONDecodeError, text: str) -> bool:
    """Whether JSON is wrong for sure, and not just cut off where the window ends: strings may go on, and the longest
    words and escapes (-Infinity, \\ud83d\\ude00) have less than 20 characters."""
    return not error.msg.startswith("Unterminated string") and error.pos < len(text) - 20


def _after_element(window: _Window) -> bool:
    """Pass the comma or the closing bracket behind an element; whether it was the bracket."""
    sign = window.next_sign()
    if sign not in (",", "]"):
        found = f"found {sign!r}" if sign else "the file ends: it is cut off"
        raise DataError(f"{window.place}: expected ',' or ']' after a row, {found}. Mend the file.")
    window.position += 1
    if sign == "," and window.next_sign() == "]":
        raise DataError(f"{window.place}: a comma before the list's end. Remove it.")
    return sign == "]"


def _no_list(window: _Window, sign: str) -> DataError:
    if not sign:
        return DataError(f"{window.path}:1: the file is empty; expected a list of rows.")
    found = "text" if sign == '"' else repr(sign)
    return DataError(f"{window.place}: expected a list of rows, found {found}. For one object a line use .jsonl.")
