"""The one door to custom code: reward functions, judges, engines, and the modules that hold them.

Whatever it does, the run ends with an error that says so, or continues unharmed:

- it raises (SystemExit, KeyboardInterrupt and the like too), or a thread that it started does: CallError
- it takes too long: CallError (`onebase.custom.call_signals`)
- a process that it forked comes back out of it: that process ends, this one continues
- it changes what all code of the process shares (`onebase.custom.process_state`): put back, or CallError
- it draws from, or seeds, the global generators: they begin at a seed of the call's own, and are put back

What cannot be caught: os._exit, a crash of the interpreter, and threads or processes that outlive the call.
"""

import contextlib
import functools
import importlib
import inspect
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from onebase.custom.call_signals import STDERR, CallSignals
from onebase.custom.process_state import COMPUTING, MANNERS, Setting, StateError, kept, seeded

T = TypeVar("T")

LONGEST = 300
"""Characters of a user's text in an error."""

OURS = (os.path.dirname(os.path.dirname(__file__)) + os.sep, os.path.dirname(importlib.__file__) + os.sep, "<frozen ")
"""How the names of files begin that are on the way to a user's code, or to none."""


class CallError(Exception):
    """What a function did in place of giving an answer, as the rest of a sentence that begins with its name."""


def call(
    work: Callable[[], T],
    function: Callable[..., Any] | None = None,
    *,
    seconds: float | None,
    seed: int,
    settings: Sequence[Setting] = (*COMPUTING, *MANNERS),
    passes: Callable[[Exception], bool] = lambda error: False,
) -> T:
    """`work()`, behind the door; CallError as above.

    function: its lines are looked for in a traceback. seconds: how long it may take; None: any time. seed: where the
    global generators begin. settings: what is put back. passes: whether an error of the work is the caller's.
    """
    signals, dead = CallSignals(seconds), list[str]()
    try:
        # Signals outermost: a stop that comes while the rest is put back waits until it is.
        with signals, kept(settings), seeded(seed), _own_threads(dead, function), _own_process(), signals.heard():
            result = work()
    except BaseException as error:
        if signals.stop is not None:
            raise signals.stop from None
        if signals.overdue:
            raise _overdue(signals) from None
        if isinstance(error, StateError):
            raise CallError(f"has changed what cannot be put back: {error}") from error
        if isinstance(error, Exception) and passes(error):
            raise
        raise CallError(_said(error, function)) from error
    if signals.stop is not None:  # swallowed by the function
        raise signals.stop
    if signals.overdue:
        raise _overdue(signals)
    if dead:
        raise CallError(dead[0])
    return result


def seconds_text(seconds: float) -> str:
    """For errors."""
    return "1 second" if seconds == 1 else f"{seconds:g} seconds"


def text_of(value: object, *, of: Callable[[Any], str] = repr) -> str:
    """A value of a user's as an error shows it: short, whatever its own code does when it is asked."""
    try:
        text = of(value)
    except (Exception, SystemExit) as error:
        text = f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"
    return text if len(text) <= LONGEST else text[:LONGEST] + "..."


def place_of(error: BaseException, function: Callable[..., Any] | None) -> str | None:
    """file:line of what went wrong in a user's code: the last line of the function's own file on the way there, rather
    than that of a library which it calls. None where nothing but libraries was on the way."""
    frames = traceback.extract_tb(error.__traceback__)
    code = None if function is None else _code_of(function)
    inside = [frame for frame in frames if code is not None and frame.filename == code.co_filename]
    others = [
        frame for frame in frames if not frame.filename.startswith(OURS) and "site-packages" not in frame.filename
    ]
    place = (inside or others)[-1:]
    return f"{place[0].filename}:{place[0].lineno}" if place else None


def _code_of(function: Callable[..., Any]) -> Any:
    whole: Any = function
    with contextlib.suppress(ValueError):  # wrappers that wrap each other
        whole = function.func if isinstance(function, functools.partial) else inspect.unwrap(function)
    return getattr(whole if hasattr(whole, "__code__") else type(whole).__call__, "__code__", None)


def _overdue(signals: CallSignals) -> CallError:
    assert signals.seconds is not None
    return CallError(f"has not ended after {seconds_text(signals.seconds)}")


def _said(error: BaseException, function: Callable[..., Any] | None) -> str:
    name, text = type(error).__name__, text_of(error, of=str)
    wanted = "" if isinstance(error, Exception) else "tried to end the run: it "
    place = place_of(error, function)
    return f"{wanted}raised {name} ({text}){'' if place is None else f' at {place}'}"


@contextlib.contextmanager
def _own_threads(dead: list[str], function: Callable[..., Any] | None) -> Iterator[None]:
    """Notes what threads that begin in here die of; nobody else would hear of it."""
    before, hook = set(threading.enumerate()), threading.excepthook

    def note(died: threading.ExceptHookArgs) -> None:
        if died.thread in before or died.exc_value is None:
            hook(died)
        else:
            dead.append(f"left an answer that may be half a one: its thread {_said(died.exc_value, function)}")

    threading.excepthook = note
    try:
        yield
    finally:
        threading.excepthook = hook


@contextlib.contextmanager
def _own_process() -> Iterator[None]:
    """Ends a process that was forked in here and comes out: it would continue as a second run in the same folder."""
    owner = os.getpid()
    try:
        yield
    finally:
        if os.getpid() != owner:
            error = sys.exc_info()[1]
            if isinstance(error, SystemExit):  # as it was meant to end
                os._exit(error.code if isinstance(error.code, int) else 0 if error.code is None else 1)
            os.write(
                STDERR, b"a process that was forked in a function of the recipe came back out of it; it ends here\n"
            )
            os._exit(1)
