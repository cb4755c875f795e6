"""The end of the process. What code of a user's own has left running does not keep it from ending.

At its exit Python waits for every thread and every process of `multiprocessing` that is not marked as a daemon. One
that hangs, in a reward function that has long been given up, would keep the command from ever coming back.
"""

import contextlib
import multiprocessing
import os
import sys
import threading
import time
from typing import NoReturn

from onebase.terminal import say

GRACE = 30.0
"""Seconds that Python's own exit may take where something is still running."""


def leave(code: str | int | None) -> NoReturn:
    """`sys.exit(code)`; where that does not come to its end, the process ends all the same, with the same code."""
    current = threading.current_thread()
    others = [thread for thread in threading.enumerate() if not thread.daemon and thread is not current]
    if others or multiprocessing.active_children():
        threading.Thread(target=_give_up, args=(code,), name="end of the process", daemon=True).start()
    sys.exit(code)


def _give_up(code: str | int | None) -> None:
    time.sleep(GRACE)
    with contextlib.suppress(OSError, ValueError):  # the terminal may be gone
        say("threads or processes that a function has left behind do not end; they are not waited for any longer.")
    for child in multiprocessing.active_children():
        child.kill()
    os._exit(code if isinstance(code, int) else 0 if code is None else 1)
