"""The command line. Nothing heavy is imported before it is needed: --help is instant."""

from pathlib import Path
from typing import Annotated

import typer

from onebase.cli import parser, threads
from onebase.custom.leaving import leave
from onebase.recipe.sections import LARGEST_SEED
from onebase.terminal import show
from pipeline import chain, data_commands, many_seeds, reward_commands, stages
from pipeline.guard import guarded

threads.limit_spinning()  # torch, which reads it, is imported by the commands


app = typer.Typer(
    name="onebase",
    cls=parser.PrintableGroup,
    help="""RLHF on one GPU: every role is a LoRA adapter on one frozen base.

    A run has up to four stages. [bold]sft[/bold] teaches a base to follow instructions; [bold]reward[/bold] learns
    from ranked responses which ones are better; [bold]ppo[/bold] trains the policy to get a higher score from the
    reward model; [bold]dpo[/bold] trains it on the rankings directly, without a reward model. Each stage writes one
    adapter and a record (stage.json), which the next stage verifies.

    Start with:  onebase run recipes/demo
    """,
    rich_markup_mode="rich",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


@app.command(rich_help_panel="A whole run")
@guarded
def run(
    folder: Annotated[Path, typer.Argument(help="Folder with sft.yaml, reward.yaml, ppo.yaml, dpo.yaml, compare.yaml")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="name=NAME, runs_dir=DIR, or STAGE.KEY=VALUE, such as ppo.train.learning_rate=1e-5"),
    ] = None,
    restart: parser.Restart = False,
    seeds: Annotated[
        list[int] | None,
        typer.Option(
            "--seeds", min=0, max=LARGEST_SEED, metavar="SEED ...", help="Run with each of these seeds: --seeds 0 1 2"
        ),
    ] = None,
) -> int:
    """Run all stages of a recipe folder in order, then compare their models.

    Every recipe is checked before the first stage starts. A stage that is finished is verified and not run again, so
    the same command resumes an interrupted run. A variant such as ppo-rloo.yaml is one more stage.

    Writes runs/NAME/{sft,reward,ppo,dpo}/, runs/NAME/summary.json and runs/NAME/lineage.json. With --seeds there is
    one run per seed, runs/NAME-SEED, and a table of all runs at the end.
    """
    wanted, changes = many_seeds.split(overrides or [], seeds or [])
    if wanted:
        return many_seeds.run(folder, changes, wanted, restart=restart)
    return chain.run(folder, changes, restart=restart)


for _stage in stages.ORDER:
    _entry = stages.entry(_stage)
    parser.add_stage(
        app,
        _stage,
        _entry.load,
        _entry.READS,
        _entry.WRITES,
        flags=getattr(_entry, "FLAGS", None),
        panel="One stage",
    )


@app.command(rich_help_panel="Results")
@guarded
def compare(
    recipe: Annotated[Path, typer.Argument(help="YAML recipe, such as recipes/demo/compare.yaml")],
    overrides: parser.Overrides = None,
    print_config: parser.PrintConfig = False,
) -> None:
    """Let base, SFT, PPO, DPO and others answer the same held-out prompts and print tables with 95 % intervals.

    Responses are stored, so a model that has not changed does not answer again.
    """
    from evaluation.compare import summary
    from evaluation.compare.compare import run as run_comparison
    from evaluation.compare.recipe import CompareRecipe
    from onebase.recipe import reader

    content = reader.read(recipe, CompareRecipe, overrides or [])
    if print_config:
        show(reader.dump(content).rstrip("\n"))
    else:
        summary.show(run_comparison(content))


@app.command(rich_help_panel="Results")
@guarded
def verify(
    folders: Annotated[list[Path], typer.Argument(help="Stage folders, such as runs/demo/ppo")],
) -> None:
    """Verify stage records: every file by its hash, and every ancestor."""
    from onebase.run import record

    for folder in folders:
        content = record.read(folder).record
        show(f"{folder}: stage '{content.stage}', {len(content.files)} files, verified")


app.add_typer(data_commands.app, rich_help_panel="Data")
app.add_typer(reward_commands.app, rich_help_panel="Results")
app.command(rich_help_panel="Results")(reward_commands.score)
app.command(name="best-of-n", rich_help_panel="Results")(reward_commands.best_of_n)


@app.command(rich_help_panel="This machine")
@guarded
def doctor(
    path: Annotated[Path, typer.Option(help="Where runs will be written: its free space is shown.")] = Path("."),
) -> int:
    """Show what this machine has: versions, device, number formats that work, W&B, disk.

    The exit code is 1 if a problem would break a run.
    """
    from pipeline import doctor as examination

    return examination.report(path)


def main() -> None:
    """The console script `onebase`."""
    try:
        app()
    except SystemExit as end:
        leave(end.code)
