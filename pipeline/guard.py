"""How a command of `onebase` ends: its errors become messages and exit codes."""

import functools
from collections.abc import Callable
from typing import ParamSpec

import typer

from onebase.cli import command

P = ParamSpec("P")


def guarded(work: Callable[P, int | None]) -> Callable[P, None]:
    """The same command, ended by typer.Exit. An error sets the exit code, else what `work` returns (None: 0)."""

    @functools.wraps(work)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        raise typer.Exit(command.guarded(lambda: work(*args, **kwargs)))

    return run
