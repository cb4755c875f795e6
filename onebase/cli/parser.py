"""The command line of a stage: `python -m sft RECIPE.yaml [key=value ...]`, which is also `onebase sft`."""

import contextlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer
from typer.core import TyperCommand, TyperGroup

from onebase.cli import threads
from onebase.cli.command import Loader, run_stage
from onebase.terminal import printable


@contextlib.contextmanager
def _printable_errors() -> Iterator[None]:
    """Inside, usage errors have control characters as their codes: they repeat what was typed."""
    try:
        yield
    except typer.TyperException as error:
        error.message = printable(error.message)
        raise


class PrintableGroup(TyperGroup):
    make_context = _printable_errors()(TyperGroup.make_context)
    invoke = _printable_errors()(TyperGroup.invoke)


class PrintableCommand(TyperCommand):
    make_context = _printable_errors()(TyperCommand.make_context)
    invoke = _printable_errors()(TyperCommand.invoke)


Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="key.sub=value: change a key of the recipe for this run, such as train.learning_rate=1e-4"),
]
Restart = Annotated[bool, typer.Option("--restart", help="Move the folder that is there aside and start again.")]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print the resolved recipe and stop.")]


def main(
    stage: str,
    load: Loader,
    reads: str,
    writes: str,
    argv: Sequence[str] | None = None,
    *,
    flags: Mapping[str, str] | None = None,
) -> int:
    """`python -m STAGE`: parse the command line and run the stage; returns the exit code."""
    threads.limit_spinning()
    app = typer.Typer(add_completion=False, rich_markup_mode="rich", pretty_exceptions_enable=False)
    add_stage(app, stage, load, reads, writes, flags=flags)
    try:
        app(argv, prog_name=f"python -m {stage}")
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    return 0


def add_stage(
    app: typer.Typer,
    stage: str,
    load: Loader,
    reads: str,
    writes: str,
    *,
    flags: Mapping[str, str] | None = None,
    panel: str | None = None,
) -> None:
    """Add the command of one stage to an app.

    flags: switches of this stage alone, each with its line of help; its `run` takes each as an argument of that name.
    """

    def command(
        recipe: Annotated[Path, typer.Argument(help=f"YAML recipe, such as recipes/smoke/{stage}.yaml")],
        overrides: Overrides = None,
        print_config: PrintConfig = False,
        restart: Restart = False,
        **switches: bool,
    ) -> None:
        raise typer.Exit(run_stage(stage, load, recipe, overrides or [], print_config, restart, **switches))

    signature = inspect.signature(command)
    switches = [
        inspect.Parameter(
            flag,
            inspect.Parameter.KEYWORD_ONLY,
            default=False,
            annotation=Annotated[bool, typer.Option(f"--{flag}", help=text)],
        )
        for flag, text in (flags or {}).items()
    ]
    command.__signature__ = signature.replace(  # type: ignore[attr-defined]  # typer reads the options from it
        parameters=[*list(signature.parameters.values())[:-1], *switches]
    )
    app.command(
        name=stage,
        cls=PrintableCommand,
        rich_help_panel=panel,
        help=f"Run stage '{stage}' alone.\n\nReads {reads}.\n\nWrites {writes}.",
        epilog=f"Example: python -m {stage} recipes/smoke/{stage}.yaml seed=1 track.wandb=offline",
    )(command)
