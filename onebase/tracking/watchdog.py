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

import psutil

LOOK_SECONDS = 2.0
"""How often a slow request makes us look whether the server is still there; two looks in vain are enough."""
ANSWER_SECONDS = 2.0


def while_it_answers(work: Callable[[], object], url: str) -> None:
    """Do `work`, which may take its time as long as the server at `url` answers; TimeoutError when it does not.

    The work then continues in a thread that nobody waits for.
    """
    thread, raised = _in_thread(work)
    misses = 0
    while thread.is_alive():
        thread.join(LOOK_SECONDS)
        if thread.is_alive():
            misses = 0 if answers(url) else misses + 1
            if misses == 2:
                raise TimeoutError(f"{url} does not answer")
    if raised:
        raise raised[0]


def in_time(work: Callable[[], object], seconds: float) -> None:
    """Do `work`; TimeoutError when it takes longer. It then continues in a thread that nobody waits for."""
    thread, raised = _in_thread(work)
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError(f"not done after {seconds:g} s")
    if raised:
        raise raised[0]


def _in_thread(work: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    """Start `work` in a thread that nobody has to wait for; what it raises is put into the list."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except BaseException as error:  # also the SystemExit of a library: told to whoever waits
            raised.append(error)

    thread = threading.Thread(target=run, name="wandb", daemon=True)
    thread.start()
    return thread, raised


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
