"""Signals while a custom function runs: a time limit, and a stop that cannot be swallowed.

A thread of its own watches the time, and not SIGALRM, which such code may well use itself. When the time is over it
sends SIGVTALRM to the main thread. The handler raises within the call, once a second until the call has ended. Code
that never comes back to Python (a product of huge numbers, an extension in C) sees no signal: it is ended some time
later by faulthandler, which prints where it hangs and leaves with exit code 1.

Only the main thread sees signals. In another one there is no time limit.
"""

import contextlib
import faulthandler
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

from onebase.custom.process_state import BLOCKED, TIMERS, kept

NUMBER = signal.SIGVTALRM
ALL = tuple(map(int, signal.valid_signals()))
AGAIN = 1.0
"""Seconds between two attempts to end a call."""
GRACE = 60.0
"""Seconds over the limit after which the process ends where no attempt has been heard."""
LONGEST = 1e9
"""Seconds that a clock of the system is set to at most."""
STDERR = 2


class OverdueError(BaseException):
    """A call has taken too long. Not an Exception: no function may take it for one of its own errors."""


class CallSignals:
    """Use as a context manager around one call and all that is put right before and after it; `heard` is for the call.

    A handler that is installed (a session's, of SIGTERM) still works: at once during the call, else at the end of all,
    when everything is put back. What it raises is kept in `stop`: the caller raises it again if the function has
    swallowed it. Handlers that the function leaves behind are taken away.
    """

    def __init__(self, seconds: float | None) -> None:
        """seconds: how long the call may take; None: any time."""
        self.seconds = seconds
        self.stop: BaseException | None = None
        """What a handler has raised."""
        self.overdue = False
        self._hears = False
        self._process = os.getpid()
        self._handlers: dict[int, Any] = {}
        self._late: list[int] = []
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._timers, self._blocked = kept(TIMERS), kept([BLOCKED])

    def __enter__(self) -> "CallSignals":
        if threading.current_thread() is not threading.main_thread():
            return self
        self._timers.__enter__()
        self._blocked.__enter__()
        try:
            for number in ALL:
                handler = signal.getsignal(number)
                self._handlers[number] = handler
                if callable(handler):
                    signal.signal(number, self._pass_on)
            if self.seconds is not None:
                self._watch(min(self.seconds, LONGEST))
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hears = False
        self._leave()
        for number in self._late:
            self._run(number, None)

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """While the function runs: what a signal raises is raised in there."""
        self._hears = True
        try:
            if self._late:
                self._run(self._late.pop(), None)
            yield
        finally:
            self._hears = False

    def _watch(self, seconds: float) -> None:
        signal.signal(NUMBER, self._end)
        main = threading.main_thread().ident
        assert main is not None

        def strike() -> None:
            wait = seconds
            while not self._done.wait(wait):
                signal.pthread_kill(main, NUMBER)
                wait = AGAIN

        self._thread = threading.Thread(target=strike, name="time limit", daemon=True)
        self._thread.start()
        faulthandler.dump_traceback_later(seconds + GRACE, exit=True, file=STDERR)

    def _end(self, number: int, frame: FrameType | None) -> None:
        if self._hears:
            self.overdue = True
            raise OverdueError

    def _pass_on(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a process that the function has forked: the handlers are not for that one
            signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
        elif self._hears:
            self._run(number, frame)
        else:
            self._late.append(number)

    def _run(self, number: int, frame: FrameType | None) -> None:
        handler: Callable[[int, FrameType | None], object] = self._handlers[number]
        try:
            handler(number, frame)
        except BaseException as error:
            self.stop = error
            raise

    def _leave(self) -> None:
        if not self._handlers:
            return
        try:
            self._timers.__exit__(None, None, None)  # before their handlers go: the default ones end the process
            self._done.set()
            if self._thread is not None:
                self._thread.join()
                faulthandler.cancel_dump_traceback_later()
        finally:
            for number, before in self._handlers.items():
                now = signal.getsignal(number)
                # A handler that has stopped the call may have changed how further signals are taken: that stands.
                ours = now in (self._pass_on, self._end)
                if before is not None and now is not before and (ours or self.stop is None):
                    signal.signal(number, before)
            self._blocked.__exit__(None, None, None)
