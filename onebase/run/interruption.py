"""SIGINT, SIGTERM and SIGHUP as an exception."""

import signal
from collections.abc import Iterable

from onebase.terminal import say

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal told the process to stop. Not an Exception: no library may swallow it as one of its errors."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells do it: 129 for SIGHUP, 130 for SIGINT, 143 for SIGTERM."""
        return 128 + self.number


def answered() -> tuple[int, ...]:
    """The signals that stop a run; without SIGHUP under `nohup`, which means that it is ignored."""
    return tuple(number for number in NUMBERS if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN)


def leave_next(numbers: Iterable[int]) -> None:
    """After the first signal: the second one ends the process at once. A second SIGHUP is ignored: a terminal that is
    closed sends one, and so does its shell."""
    for number in numbers:
        signal.signal(number, signal.SIG_IGN if number == signal.SIGHUP else signal.SIG_DFL)


def say_stopping(number: int) -> None:
    """Tell the user."""
    say(f"{signal.Signals(number).name}: stopping; a second one leaves at once")
