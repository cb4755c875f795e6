"""SIGINT, SIGTERM and SIGHUP as an exception."""

import signal

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
