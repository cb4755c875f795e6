"""What a process's code shares: settings that code of a user's own may change, read before it runs and put back after.

Each setting is a name, how it is read and how it is written. What cannot be written is refused.
"""

import contextlib
import gc
import locale
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy
import torch


class StateError(Exception):
    """Something was changed that cannot be put back."""


@dataclass(frozen=True)
class Setting:
    """One thing that all code of the process shares."""

    name: str
    """What an error calls it."""
    read: Callable[[], Any]
    write: Callable[[Any], object]


@contextlib.contextmanager
def kept(settings: Sequence[Setting]) -> Iterator[None]:
    """Puts back at its end what has changed; StateError, after everything else is put back, where that cannot be."""
    before = [setting.read() for setting in settings]
    try:
        yield
    finally:
        stuck: list[str] = []
        for setting, value in zip(settings, before, strict=True):
            if setting.read() == value:
                continue
            try:
                setting.write(value)
            except (OSError, RuntimeError, StateError) as error:
                stuck.append(f"{setting.name} ({error})")
        if stuck:
            raise StateError(", ".join(stuck))


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """The global generators of python, numpy and torch begin at this seed, and are put back at the end."""
    states = random.getstate(), numpy.random.get_state()
    # Not where no kernel has run on a GPU yet: looking at one would start it.
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        random.seed(seed)
        numpy.random.seed(seed % 2**32)
        # Not torch.manual_seed: it would leave this seed to a GPU that starts later.
        torch.default_generator.manual_seed(seed)
        if devices:
            torch.cuda.manual_seed_all(seed)
        try:
            yield
        finally:
            random.setstate(states[0])
            numpy.random.set_state(states[1])


def _attribute(place: str, owner: Any, attribute: str) -> Setting:
    return Setting(f"{place}.{attribute}", partial(getattr, owner, attribute), partial(setattr, owner, attribute))


def _folder() -> str | None:
    try:
        return os.getcwd()
    except FileNotFoundError:  # removed meanwhile
        return None


def _set_environment(variables: Mapping[str, str]) -> None:
    for name in set(os.environ) - set(variables):
        del os.environ[name]
    os.environ.update(variables)


def _set_filters(filters: Sequence[Any]) -> None:
    warnings.resetwarnings()  # tells the interpreter that what it has kept of them is old
    warnings.filters[:] = filters  # type: ignore[index]  # typeshed calls the list a sequence


def _set_device(device: torch.device) -> None:
    # Where none was set it reads as cpu; setting cpu would put a mode in front of every call.
    torch.set_default_device(None if device.type == "cpu" else device)


def _matmul_precision() -> str:
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set for one backend alone: the settings below say how
        return "mixed"


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _autocast(device: str) -> tuple[bool, torch.dtype]:
    return torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)


def _set_autocast(device: str, value: tuple[bool, torch.dtype]) -> None:
    torch.set_autocast_enabled(device, value[0])
    torch.set_autocast_dtype(device, value[1])


def _refuse(value: object) -> None:
    raise StateError("leave it where you have entered it, with `with`")


def _runs(timer: int) -> bool:
    return signal.getitimer(timer)[0] > 0


def _stop(timer: int, ran: bool) -> None:
    if not ran:
        signal.setitimer(timer, 0)


_backends: Any = torch.backends  # some of its parts are made by torch while it is imported
_precisions = {
    "torch.backends": _backends,
    "torch.backends.cuda.matmul": _backends.cuda.matmul,
    "torch.backends.cudnn": _backends.cudnn,
    "torch.backends.cudnn.conv": _backends.cudnn.conv,
    "torch.backends.cudnn.rnn": _backends.cudnn.rnn,
    "torch.backends.mkldnn": _backends.mkldnn,
    "torch.backends.mkldnn.matmul": _backends.mkldnn.matmul,
    "torch.backends.mkldnn.conv": _backends.mkldnn.conv,
    "torch.backends.mkldnn.rnn": _backends.mkldnn.rnn,
}

COMPUTING = (
    Setting("inference mode", torch.is_inference_mode_enabled, _refuse),
    Setting("autograd", torch.is_grad_enabled, torch.set_grad_enabled),
    Setting("torch's anomaly mode", torch.is_anomaly_enabled, torch.set_anomaly_enabled),
    Setting("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    Setting("torch's default device", torch.get_default_device, _set_device),
    Setting("torch's threads", torch.get_num_threads, torch.set_num_threads),
    Setting("autocast on the CPU", partial(_autocast, "cpu"), partial(_set_autocast, "cpu")),
    Setting("autocast on the GPU", partial(_autocast, "cuda"), partial(_set_autocast, "cuda")),
    # Read off a number that is only just too small to be normal: there is no way to ask.
    Setting("flushing of denormals", lambda: sys.float_info.min * 0.5 == 0.0, torch.set_flush_denormal),
    Setting(
        "torch's deterministic algorithms",
        lambda: (
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ),
        _set_deterministic,
    ),
    Setting("torch's matmul precision", _matmul_precision, torch.set_float32_matmul_precision),
    *(_attribute(place, owner, "fp32_precision") for place, owner in _precisions.items()),
    _attribute("torch.backends.cudnn", _backends.cudnn, "enabled"),
    _attribute("torch.backends.cudnn", _backends.cudnn, "benchmark"),
    _attribute("torch.backends.cudnn", _backends.cudnn, "deterministic"),
    _attribute("torch.backends.mkldnn", _backends.mkldnn, "enabled"),
    _attribute("torch.backends.mkldnn", _backends.mkldnn, "deterministic"),
    _attribute("torch.backends.cuda.matmul", _backends.cuda.matmul, "allow_fp16_reduced_precision_reduction"),
    _attribute("torch.backends.cuda.matmul", _backends.cuda.matmul, "allow_bf16_reduced_precision_reduction"),
    Setting("attention kernels", _backends.cuda.flash_sdp_enabled, _backends.cuda.enable_flash_sdp),
    Setting("attention kernels", _backends.cuda.mem_efficient_sdp_enabled, _backends.cuda.enable_mem_efficient_sdp),
    Setting("attention kernels", _backends.cuda.math_sdp_enabled, _backends.cuda.enable_math_sdp),
    Setting("attention kernels", _backends.cuda.cudnn_sdp_enabled, _backends.cuda.enable_cudnn_sdp),
    Setting("numpy's floating-point errors", numpy.geterr, lambda value: numpy.seterr(**value)),
    Setting("the working folder", _folder, os.chdir),
)
"""What decides our numbers, and where our files go."""

MANNERS = (
    Setting("the environment", lambda: dict(os.environ), _set_environment),
    Setting("warning filters", lambda: list(warnings.filters), _set_filters),
    Setting("the locale", partial(locale.setlocale, locale.LC_ALL), partial(locale.setlocale, locale.LC_ALL)),
    Setting("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
    Setting("garbage collection", gc.isenabled, lambda on: gc.enable() if on else gc.disable()),
    _attribute("sys", sys, "stdin"),
    _attribute("sys", sys, "stdout"),
    _attribute("sys", sys, "stderr"),
    _attribute("sys", sys, "excepthook"),
)
"""What a module may well set up for itself while it is imported, and a call may not leave behind."""

TIMERS = tuple(
    Setting("an alarm", partial(_runs, timer), partial(_stop, timer))
    for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF)
)
BLOCKED = Setting(
    "blocked signals",
    lambda: signal.pthread_sigmask(signal.SIG_BLOCK, []),
    partial(signal.pthread_sigmask, signal.SIG_SETMASK),
)
"""Of the main thread, which alone sees to signals."""
