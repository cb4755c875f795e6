"""The one place that writes to the terminal: what comes from files and other people's code is shown there, not obeyed.

A file's name, a row's text or an exception's message may hold escape codes that clear the screen, colour a line or turn
the direction of writing. Every control character but tab and line feed is written as its code (`\\x1b`).
"""

import contextlib
import errno
import json
import os
import re
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import Console

# C0 but tab and line feed, DEL and C1, marks that turn the direction of writing or break a line, and lone surrogates.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")

COLUMNS_OF_A_FILE = 120
"""How wide a table is where stdout is not a terminal."""


def printable(text: str) -> str:
    """The text with each control character as its code (`\\x1b`), which a terminal shows and does not obey."""
    return _CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text)


class NobodyReadsError(Exception):
    """Whoever read stdout has ended, as `head` does when it has its lines."""


def say(text: str) -> None:
    """A line for the user, on stderr: stdout is for results.

    The work is worth more than the line. It continues where stderr is a pipe without a reader, a terminal that is gone,
    or a log on a full disk.
    """
    try:
        print(printable(text), file=sys.stderr, flush=True)
    except OSError as error:
        if error.errno in (errno.EPIPE, errno.EIO):
            let_go(sys.stderr)


def show(text: str) -> None:
    """A line of a result, on stdout."""
    _print(printable(text))


def show_json(line: str) -> None:
    """A line of JSON on stdout. Control characters get JSON's own escapes: a parser reads the same."""
    _print(_CONTROLS.sub(lambda match: json.dumps(match[0])[1:-1], line))


def _print(text: str) -> None:
    """On stdout; NobodyReadsError where its reader has ended, and any other error names it."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        let_go(sys.stdout)
        raise NobodyReadsError from None
    except OSError as error:
        raise OSError(error.errno, error.strerror, "stdout") from None


def release_streams() -> None:
    """At the end of a command: what could not be written is let go, or Python would try it again at its exit and end
    with a code and words of its own."""
    for stream in filter(None, (sys.stdout, sys.stderr)):  # None where a daemon was started without
        try:
            stream.flush()
        except OSError:
            let_go(stream)


def let_go(stream: TextIO) -> None:
    """From now on what is written to it goes nowhere, and so does what Python still holds of it."""
    with contextlib.suppress(OSError):  # a test's stream has no descriptor
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)


def console(*, stderr: bool = False) -> "Console":
    """A console of rich for tables and bars. What it prints besides its own styles goes through `printable`.

    Texts are shown as they are: `[red]` in a name does not colour it, and `:x:` stays text. For a style pass a
    `rich.text.Text`; the text of a bar's column needs `markup=False` too.
    """
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class PrintableConsole(Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                plain: Any = segment if segment.control else segment._replace(text=printable(segment.text))
                yield plain

        def on_broken_pipe(self) -> None:
            """In place of rich's own `sys.exit(1)`. A bar is not a result."""
            let_go(self.file)  # type: ignore[arg-type]  # a TextIO for all that we give it
            if not stderr:
                raise NobodyReadsError

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else COLUMNS_OF_A_FILE
    return PrintableConsole(stderr=stderr, width=width, markup=False, emoji=False)
