"""Waiting for W&B's client, which itself would wait for a lost server for days.

Not by W&B's own time-outs. `init_timeout` needs a process of W&B's that works. `finish_timeout` covers `finish` alone,
and cuts a slow upload to a server that answers off like one to a server that is gone.
"""

import contextlib
import http.client
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Collection
from concurrent.futures import Future, wait
from typing import TypeVar

import psutil

T = TypeVar("T")

LOOK_SECONDS = 2.0
"""How often a slow request makes us look whether the server is still there; two looks in vain are enough."""
ANSWER_SECONDS = 2.0


def while_it_answers(work: Callable[[], T], url: str) -> T:
    """Do `work`, which may take its time as long as the server at `url` answers; TimeoutError when it does not.

    The work then continues in a thread that nobody waits for.
    """
    future, misses = _in_thread(work), 0
    while not wait([future], LOOK_SECONDS).done:
        misses = 0 if answers(url) else misses + 1
        if misses == 2:
            raise TimeoutError(f"{url} does not answer")
    return future.result()


def in_time(work: Callable[[], T], seconds: float) -> T:
    """Do `work`; TimeoutError when it takes longer. It then continues in a thread that nobody waits for."""
    future = _in_thread(work)
    if not wait([future], seconds).done:
        raise TimeoutError(f"not done after {seconds:g} s")
    return future.result()


def _in_thread(work: Callable[[], T]) -> Future[T]:
    """Start `work` in a thread that nobody has to wait for. An executor's threads are waited for at exit."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:  # also the SystemExit of a library: told to whoever waits
            future.set_exception(error)

    threading.Thread(target=run, name="wandb", daemon=True).start()
    return future


def answers(url: str) -> bool:
    """Whether anything at all comes back."""
    try:
        with urllib.request.urlopen(url, timeout=ANSWER_SECONDS):
            return True
    except urllib.error.HTTPError as error:
        return error.code < 500  # a gateway says so of a server that is gone
    except (OSError, ValueError, http.client.HTTPException):  # the last: something answers, and speaks no HTTP
        return False


def end_wandb(others: Collection[psutil.Process] = ()) -> None:
    """End W&B's process; the next run gets a new one. At our exit its client would wait for it, and it for its server.

    others: processes of ours that are certainly not it. With them, every other child is ended.
    """
    ended = []
    for child in children():
        with contextlib.suppress(psutil.Error):  # it may have ended by itself
            if (others and child not in others) or "wandb" in child.name():
                child.kill()
                ended.append(child)
    psutil.wait_procs(ended, timeout=2)
    with contextlib.suppress(Exception, SystemExit):  # it would like to say good-bye to the process
        import wandb

        wandb.teardown()


def children() -> list[psutil.Process]:
    try:
        return psutil.Process().children()
    except (OSError, psutil.Error):  # a system that does not say
        return []
