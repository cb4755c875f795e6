"""`onebase eval reward` and `onebase score`: how good a finished reward model is, and its scores for any response.

Nothing heavy is imported before a command runs.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from onebase.errors import InputError
from onebase.files.paths import expanded
from onebase.recipe.sections import LARGEST_COUNT, LARGEST_SEED
from onebase.run.folders import require_new, require_writable
from onebase.run.record import is_finished
from onebase.terminal import say, show
from pipeline.guard import guarded

if TYPE_CHECKING:
    from onebase.inference.scoring import CombineSection

app = typer.Typer(
    name="eval",
    help="""Measure the result of a finished stage: [bold]onebase eval reward runs/demo/reward[/bold].""",
    no_args_is_help=True,
    rich_markup_mode="rich",
)

LARGEST_N = 10_000
"""Responses to one prompt: all of them are in memory at once."""

Record = Annotated[Path, typer.Argument(help="Folder of a finished reward stage, such as runs/demo/reward")]
Others = Annotated[
    list[Path] | None,
    typer.Option("--with", help="Add another reward stage on the same base, for an ensemble. Repeat it for more."),
]
Combine = Annotated[
    str, typer.Option(help="Rule for an ensemble: mean, min, mean-minus-variance or mean-minus-deviation.")
]
SpreadWeight = Annotated[
    float | None,
    typer.Option(min=0.0, max=1e6, help="For mean-minus-...: what one unit of variance or deviation costs."),
]


@app.command()
@guarded
def reward(
    record: Record,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for report.json and a figure. By default evaluation/reward beside the stage."),
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(help="Rankings in place of the recipe's held-out ones: files, hub ids or builtin:tasks."),
    ] = None,
    split: Annotated[str | None, typer.Option(help="Split of --data, as in a recipe.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, max=LARGEST_COUNT, help="Most rows of each --data.")] = None,
    others: Others = None,
    combine: Combine = "mean",
    spread_weight: SpreadWeight = None,
) -> None:
    """Score held-out rankings with a finished reward model and say whether to trust it.

    Accuracy with 95 % intervals, by gap, source, task, label and length; calibration; best of n; demonstrations;
    baselines; the pairs with the largest errors. The reward stage ends with the same report on its own held-out
    rankings.

    Writes report.json and reliability.svg.
    """
    from data.select.sources import Source
    from evaluation.reward_model import heldout, loading, table

    if not data and (split is not None or rows is not None):
        raise InputError("--split and --rows are for --data, which is missing. Add --data, or leave them out.")
    sources = [Source(source=source, split=split, rows=rows) for source in data or ()]
    if out is None and not is_finished(record):
        loading.read([record])  # refuses it and names the likely stage; nothing may be written beside it
    folder = expanded(out) if out else record.resolve().parent / "evaluation" / "reward"
    section = combine_section(combine, spread_weight, others)
    report = heldout.evaluate([record, *(others or ())], folder, rankings=sources, combine=section)
    table.show(report, f"{record}: {report['prompts']} held-out prompts")
    show(f"report and figure: {folder}")


@guarded
def score(
    record: Record,
    file: Annotated[Path, typer.Argument(help='.jsonl with {"prompt", "response"} or {"prompt", "responses"} rows')],
    out: Annotated[Path | None, typer.Option(help="File to write, whole or not at all. By default stdout.")] = None,
    best: Annotated[bool, typer.Option("--best", help="Keep only the best response of each row (best of n).")] = False,
    others: Others = None,
    combine: Combine = "mean",
    spread_weight: SpreadWeight = None,
) -> None:
    """Score responses with a finished reward model: read lines of JSON, and write the same lines with scores.

    0 is what demonstrations score on average; only differences between responses to one prompt were learned.
    """
    from evaluation import score_file
    from evaluation.reward_model import loading

    folders = [record, *(others or ())]
    target = _new_file(out)
    score_file.require_rows(file)  # before the weights, which take seconds
    model = loading.load(folders, combine_section(combine, spread_weight, others))
    count = score_file.write_lines(score_file.scored(model, file, best=best), target)
    say(f"{count} rows scored by {record}")


@guarded
def best_of_n(
    policy: Annotated[Path, typer.Argument(help="Folder of the policy that answers: a finished sft, ppo or dpo stage")],
    record: Record,
    prompts: Annotated[str, typer.Argument(help="Prompts: a file, a hub id or a built-in source")],
    n: Annotated[int, typer.Option("--n", min=1, max=LARGEST_N, help="Responses drawn for each prompt.")] = 4,
    out: Annotated[Path | None, typer.Option(help="File to write, whole or not at all. By default stdout.")] = None,
    keep_all: Annotated[bool, typer.Option("--all", help="Keep all n responses with their scores.")] = False,
    split: Annotated[str | None, typer.Option(help="Split of the prompts, as in a recipe.")] = None,
    rows: Annotated[
        int | None, typer.Option(min=1, max=LARGEST_COUNT, help="How many prompts. By default all.")
    ] = None,
    max_new_tokens: Annotated[
        int, typer.Option(min=1, max=LARGEST_COUNT, help="Most tokens of a response; a longer one is cut.")
    ] = 64,
    temperature: Annotated[
        float, typer.Option(min=0.01, max=100, help="1 samples from the policy's distribution as it is.")
    ] = 1.0,
    batch: Annotated[int, typer.Option(min=1, max=LARGEST_COUNT, help="Responses decoded at once.")] = 32,
    seed: Annotated[int, typer.Option(min=0, max=LARGEST_SEED, help="The same seed draws the same responses.")] = 0,
    others: Others = None,
    combine: Combine = "mean",
    spread_weight: SpreadWeight = None,
) -> None:
    """Answer each prompt n times with a policy and keep the response that a reward model scores highest.

    Writes one line of JSON per prompt, as soon as it is answered: prompt, response, its score and all n scores. The
    result is a file of demonstrations, which sft can read.
    """
    from data.select.sources import Source
    from evaluation import best_of_n as best
    from evaluation import score_file
    from evaluation.reward_model import loading

    folders = [record, *(others or ())]
    target = _new_file(out)
    questions = best.prompts_of(Source(source=prompts, split=split, rows=rows), seed=seed)
    model = loading.load(folders, combine_section(combine, spread_weight, others))
    best.add_policy(model, policy)
    sampling = best.Sampling(n=n, max_new_tokens=max_new_tokens, temperature=temperature, batch=batch, seed=seed)
    count = score_file.write_lines(best.answered(model, questions, sampling, keep_all=keep_all), target)
    say(f"{count} prompts answered by {policy}, best of {n} by {record}")


def _new_file(out: Path | None) -> Path | None:
    """The file to write, which must not exist yet; None for stdout."""
    if out is None:
        return None
    target = expanded(out)
    require_new(target)
    require_writable(target.parent)
    return target


def combine_section(rule: str, spread_weight: float | None, others: list[Path] | None) -> "CombineSection":
    """How several scores become one; InputError for an unknown rule, and for a rule with a single reward model."""
    from pydantic import ValidationError

    from onebase.inference.scoring import RULES, CombineSection

    if rule not in RULES:
        raise InputError(f"--combine {rule}: unknown rule. Pass one of: {', '.join(RULES)}.")
    if not others and (rule != "mean" or spread_weight is not None):
        raise InputError("--combine and --spread-weight need several reward models. Name more with --with.")
    weight = {} if spread_weight is None else {"spread_weight": spread_weight}
    try:
        return CombineSection.model_validate({"rule": rule, **weight})
    except ValidationError as error:
        raise InputError(f"--spread-weight: {error.errors()[0]['msg'].removeprefix('Value error, ')}.") from None
