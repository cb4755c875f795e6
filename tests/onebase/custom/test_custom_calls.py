"""The door to functions of a user's own: whatever one does in there, the caller hears of it and is as before."""

import functools
import gc
import json
import locale
import os
import random
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from onebase.custom import call_signals
from onebase.custom.custom_calls import LONGEST, CallError, call
from onebase.custom.functions import load_function
from onebase.custom.process_state import BLOCKED, COMPUTING, MANNERS, Setting
from onebase.errors import Interrupted, RecipeError


def through(function: Callable[[], Any], *, seconds: float | None = 60.0, seed: int = 0) -> Any:
    return call(function, function, seconds=seconds, seed=seed)


def raising(error: BaseException) -> Callable[[], Any]:
    def function() -> None:
        raise error

    return function


class Nameless(Exception):
    def __str__(self) -> str:
        raise SystemExit(0)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (SystemExit(), "tried to end the run: it raised SystemExit"),
        (SystemExit("bye"), "tried to end the run: it raised SystemExit .bye."),
        (KeyboardInterrupt(), "tried to end the run: it raised KeyboardInterrupt"),
        (GeneratorExit(), "tried to end the run: it raised GeneratorExit"),
        (Interrupted(signal.SIGTERM), "tried to end the run: it raised Interrupted"),
        (ValueError("no"), "^raised ValueError .no."),
        (StopIteration(), "^raised StopIteration"),
        (MemoryError(), "^raised MemoryError"),
        (Nameless(), "^raised Nameless .<Nameless that cannot be shown: SystemExit>."),
    ],
)
def test_whatever_a_function_raises_is_an_error_with_its_line(error: BaseException, message: str) -> None:
    with pytest.raises(CallError, match=rf"{message}.* at \S*test_custom_calls\.py:\d+$"):
        through(raising(error))


def test_a_long_text_of_an_error_is_cut() -> None:
    with pytest.raises(CallError) as caught:
        through(raising(ValueError("x" * 10**6)))
    assert len(str(caught.value)) < LONGEST + 300


def waits() -> None:
    threading.Event().wait(60)


def computes() -> None:
    while True:
        pass


def takes_every_error_for_its_own() -> int:
    try:
        time.sleep(60)
    except BaseException:
        return 1
    return 0


def holds_on_to_itself() -> int:
    for _ in range(3):
        try:
            time.sleep(60)
        except BaseException:
            continue
    return 0


def waits_for_a_thread_that_has_ended() -> None:
    done = threading.Event()
    thread = threading.Thread(target=sys.exit)
    thread.start()
    done.wait(60)


@pytest.mark.parametrize(
    "function",
    [waits, computes, takes_every_error_for_its_own, holds_on_to_itself, waits_for_a_thread_that_has_ended],
)
def test_a_function_that_hangs_is_ended(function: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(call_signals, "AGAIN", 0.05)
    with pytest.raises(CallError, match=r"has not ended after 0\.1 seconds"):
        through(function, seconds=0.1)
    assert signal.getsignal(call_signals.NUMBER) is signal.SIG_DFL


def test_a_time_limit_of_the_functions_own_works_beside_ours() -> None:
    def limited() -> str:
        def late(number: int, frame: object) -> None:
            raise TimeoutError

        before = signal.signal(signal.SIGALRM, late)
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        try:
            time.sleep(60)
        except TimeoutError:
            return "late"
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        return "never"

    assert through(limited) == "late"


def dies(error: type[Exception]) -> Callable[[], int]:
    def function() -> int:
        thread = threading.Thread(target=raising(error("inside")))
        thread.start()
        thread.join()
        return 1

    return function


@pytest.mark.parametrize("error", [ZeroDivisionError, OSError])
def test_a_thread_that_dies_is_heard_of(error: type[Exception]) -> None:
    hook = threading.excepthook
    with pytest.raises(CallError, match=rf"its thread raised {error.__name__} \(inside\) at \S*test_custom_calls"):
        through(dies(error))
    assert threading.excepthook is hook


@pytest.fixture
def stopping() -> Iterator[Callable[[int, object], None]]:
    """A handler as a session has it: the second signal leaves at once."""

    def handler(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_DFL)
        raise Interrupted(number)

    before = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGINT)}
    yield handler
    for number, old in before.items():
        signal.signal(number, old)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("swallowed", [True, False])
def test_a_stop_is_never_taken_for_the_functions_own_error(
    stopping: Callable[[int, object], None], number: signal.Signals, swallowed: bool
) -> None:
    def function() -> int:
        try:
            os.kill(os.getpid(), number)
            time.sleep(60)
        except BaseException:
            if not swallowed:
                raise
        return 1

    with pytest.raises(Interrupted) as caught:
        through(function)
    assert caught.value.number == number
    assert signal.getsignal(number) is signal.SIG_DFL
    other = signal.SIGINT if number == signal.SIGTERM else signal.SIGTERM
    assert signal.getsignal(other) is stopping


@pytest.mark.parametrize("when", ["reading", "writing", "leaving"])
def test_a_stop_while_things_are_put_right_waits_until_they_are_and_is_a_stop(
    stopping: Callable[[int, object], None], when: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A function that is done in no time spends most of a call there."""
    place, calls = {"value": 0}, list[str]()

    def stop(now: str) -> None:
        if now == when and not calls:
            calls.append(now)
            os.kill(os.getpid(), signal.SIGTERM)

    def read() -> int:
        stop("reading")
        return place["value"]

    def write(value: int) -> None:
        stop("writing")
        place["value"] = value

    def leave() -> None:
        stop("leaving")
        cancel()

    cancel = call_signals.faulthandler.cancel_dump_traceback_later
    monkeypatch.setattr(call_signals.faulthandler, "cancel_dump_traceback_later", leave)
    before = torch.get_default_dtype(), os.getcwd()

    def function() -> None:
        place["value"] = 1
        torch.set_default_dtype(torch.float64)
        os.chdir("/")

    settings = (*COMPUTING, Setting("a place", read, write))
    with pytest.raises(Interrupted):
        call(function, function, seconds=60.0, seed=0, settings=settings)
    assert calls == [when]
    assert (torch.get_default_dtype(), os.getcwd(), place["value"]) == (*before, 0)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    assert [thread for thread in threading.enumerate() if thread.name == "time limit"] == []


@pytest.mark.parametrize("seconds", [1e-9, 1e11, sys.float_info.max])
def test_a_time_limit_of_any_size_is_one(seconds: float) -> None:
    if seconds > 1:
        assert through(int, seconds=seconds) == 0
    else:
        with pytest.raises(CallError, match="has not ended after 1e-09 seconds"):
            through(waits, seconds=seconds)


def test_handlers_alarms_and_blocked_signals_that_are_left_behind_are_gone(
    stopping: Callable[[int, object], None],
) -> None:
    timers = (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)

    def function() -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGINT, lambda number, frame: None)
        signal.signal(signal.SIGUSR1, lambda number, frame: None)
        for timer in timers:
            signal.setitimer(timer, 60)
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])

    for function_ in (function, functools.partial(function)):
        through(function_)
        assert signal.getsignal(signal.SIGTERM) is stopping
        assert signal.getsignal(signal.SIGINT) is stopping
        assert signal.getsignal(signal.SIGUSR1) is signal.SIG_DFL
        assert [signal.getitimer(timer)[0] for timer in timers] == [0.0, 0.0, 0.0]
        assert not BLOCKED.read()


def set_environment() -> None:
    os.environ["ONEBASE_TEST"] = "1"
    os.environ.pop("HOME", None)


CHANGES: dict[str, Callable[[], object]] = {
    "autograd": lambda: torch.set_grad_enabled(False),
    "anomaly mode": lambda: torch.autograd.set_detect_anomaly(True),
    "dtype": lambda: torch.set_default_dtype(torch.float64),
    "half dtype": lambda: torch.set_default_dtype(torch.bfloat16),
    "device": lambda: torch.set_default_device("meta"),
    "threads": lambda: torch.set_num_threads(torch.get_num_threads() + 1),
    "autocast": lambda: torch.autocast("cpu", dtype=torch.float16).__enter__(),
    "denormals": lambda: torch.set_flush_denormal(True),
    "deterministic": lambda: torch.use_deterministic_algorithms(True, warn_only=True),
    "matmul": lambda: torch.set_float32_matmul_precision("medium"),
    "one backend's matmul": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
    "all precisions": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
    "cudnn": lambda: setattr(torch.backends.cudnn, "benchmark", True),
    "attention": lambda: torch.backends.cuda.enable_math_sdp(False),
    "numpy": lambda: numpy.seterr(all="raise"),
    "folder": lambda: os.chdir("/"),
    "environment": set_environment,
    "filters": lambda: warnings.simplefilter("ignore"),
    "locale": lambda: locale.setlocale(locale.LC_NUMERIC, "C.UTF-8"),
    "recursion": lambda: sys.setrecursionlimit(12_345),
    "collection": gc.disable,
    "stdout": lambda: setattr(sys, "stdout", sys.stderr),
    "excepthook": lambda: setattr(sys, "excepthook", print),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_a_function_changes_for_everybody_is_put_back(name: str) -> None:
    settings = (*COMPUTING, *MANNERS)
    before = [setting.read() for setting in settings]
    changed: list[str] = []

    def function() -> None:
        CHANGES[name]()
        changed.extend(setting.name for setting, value in zip(settings, before, strict=True) if setting.read() != value)

    through(function)
    assert changed, "this change is not seen"
    assert [setting.name for setting, value in zip(settings, before, strict=True) if setting.read() != value] == []
    assert (torch.ones(2, requires_grad=True) * 2).requires_grad
    assert torch.ones(1).dtype == torch.float32


def test_inference_mode_that_is_left_on_is_refused() -> None:
    mode = torch.inference_mode()
    try:
        with pytest.raises(CallError, match="cannot be put back: inference mode"):
            through(lambda: mode.__enter__())
    finally:
        mode.__exit__(None, None, None)


def draws() -> list[float]:
    return [random.random(), float(numpy.random.random()), float(torch.rand(()))]


def numpy_state() -> list[int]:
    state: Any = numpy.random.get_state()
    return state[1].tolist()


def test_the_global_generators_begin_at_the_calls_seed_and_are_as_before() -> None:
    random.seed(1)
    random.random()  # from here on a draw moves the place in the state and not the state
    # Of python's generator all but the place: the checks of shapes and types that tests run under draw from it.
    before = random.getstate()[1][:-1], numpy_state(), torch.get_rng_state()

    def reseeds() -> list[float]:
        numbers = draws()
        random.seed(7)
        numpy.random.seed(7)
        torch.manual_seed(7)
        return numbers

    first, again, other = through(reseeds, seed=3), through(draws, seed=3), through(draws, seed=2**63 - 1)
    assert first == again
    assert not set(first) & set(other)
    assert random.getstate()[1][:-1] == before[0]
    assert numpy_state() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


FORKS = """
import json, os, signal, sys, threading, time, multiprocessing
from onebase.custom import call_signals
from onebase.custom.custom_calls import CallError, call

def returns():
    child = os.fork()
    return 1.0 if child == 0 else os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def raises():
    child = os.fork()
    if child == 0:
        raise ValueError
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def exits():
    child = os.fork()
    if child == 0:
        sys.exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def pools():
    process = multiprocessing.get_context("fork").Process(target=sys.exit, args=(5,))
    process.start()
    process.join()
    return process.exitcode

def is_ended():  # as a runner of code ends a worker that takes too long
    here, there = os.pipe()
    process = multiprocessing.get_context("fork").Process(target=lambda: (os.write(there, b"!"), time.sleep(60)))
    process.start()
    os.read(here, 1)  # Python forgets signals that come while a process begins
    process.terminate()
    process.join()
    return process.exitcode

def stop(number, frame):
    print("the run's own handler", file=sys.stderr)
    raise KeyboardInterrupt

signal.signal(signal.SIGTERM, stop)
owner = os.getpid()
for function in (returns, raises, exits, pools, is_ended):
    answer = call(function, function, seconds=60, seed=0)
    print(json.dumps([function.__name__, answer, os.getpid() == owner]), flush=True)
call_signals.GRACE = 0.2
print("never back", flush=True)

def never_back():
    import itertools
    return sum(itertools.repeat(1))

call(never_back, never_back, seconds=0.2, seed=0)
print("back")
"""


def test_a_forked_process_ends_at_the_door_and_a_hang_outside_python_ends_the_process() -> None:
    done = subprocess.run([sys.executable, "-c", FORKS], capture_output=True, text=True, timeout=120)
    *rows, last = done.stdout.splitlines()
    assert [json.loads(row) for row in rows] == [
        ["returns", 1, True],
        ["raises", 1, True],
        ["exits", 7, True],
        ["pools", 5, True],
        ["is_ended", -signal.SIGTERM, True],
    ]
    assert "handler" not in done.stderr
    assert last == "never back"
    assert done.returncode == 1
    assert done.stderr.count("came back out of it; it ends here") == 2
    assert "in never_back" in done.stderr


ASKS = "from onebase.recipe import reader\nfrom onebase.recipe.sections import ChatSection\n"
"""How a module begins that calls something of ours."""


def test_a_module_is_imported_behind_the_same_door(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, text, message in (
        ("leaves", "import sys\nsys.exit(0)\n", r"tried to end the run: it raised SystemExit .0. at \S*leaves\.py:2"),
        ("stops", "raise KeyboardInterrupt\n", "tried to end the run: it raised KeyboardInterrupt"),
        ("asks", f"{ASKS}reader.read('no.yaml', ChatSection)\n", r"raised RecipeError .* at \S*asks\.py:3"),
        ("lazy", "def __getattr__(name):\n    raise SystemExit(0)\n", "raised SystemExit"),
    ):
        (tmp_path / f"{name}.py").write_text(text)
        with pytest.raises(
            RecipeError, match=f"reward.terms: the module '{name}' .* cannot be imported: it .*{message}"
        ):
            load_function(f"{name}:reward", "reward.terms")
    (tmp_path / "moves.py").write_text(
        "import os, torch\nos.chdir('/')\ntorch.set_default_dtype(torch.float64)\nos.environ['ONEBASE_MOVES'] = '1'\n"
        "def reward(prompt, response):\n    return 1\n"
    )
    monkeypatch.delenv("ONEBASE_MOVES", raising=False)
    folder = os.getcwd()
    load_function("moves:reward", "reward.terms")
    assert os.getcwd() == folder
    assert torch.get_default_dtype() == torch.float32
    assert os.environ["ONEBASE_MOVES"] == "1"  # set up for its own calls


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("async def reward(prompt, response):\n    return 1\n", "is an `async def`"),
        ("def reward(prompt, response):\n    yield 1\n", "is a generator"),
        ("async def reward(prompt, response):\n    yield 1\n", "is an `async def`"),
        (
            "class Judge:\n    async def __call__(self, p, r):\n        return 1\nreward = Judge()\n",
            "is an `async def`",
        ),
        ("import functools\ndef g(x, p, r):\n    yield 1\nreward = functools.partial(g, 1)\n", "is a generator"),
    ],
)
def test_what_gives_no_answer_is_refused_before_anything_is_loaded(
    text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "later", raising=False)
    (tmp_path / "later.py").write_text(text)
    with pytest.raises(RecipeError, match=f"'later:reward' {message}"):
        load_function("later:reward", "reward.terms")
    sys.modules.pop("later", None)
