"""summary.json and lineage.json: what a run came to and where everything in it came from; and the table of it."""

import os
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.statistics import Estimate
from onebase import record
from onebase.errors import RecordError
from onebase.record import DataIdentity, Found, Resources
from onebase.terminal import console

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = 1

Tables = Mapping[str, Mapping[str, Estimate]]
"""Estimates by model or comparison, then by metric."""

GREEDY = {
    "correctness": "correctness",
    "form": "form",
    "check": "check",
    "reward": "reward",
    "length": "length",
    "stop_rate": "stopped",
}
SAMPLED = {
    "sampled_correctness": "correctness",
    "sampled_form": "form",
    "sampled_check": "check",
    "sampled_reward": "reward",
    "kl_to_sft": "KL to SFT",
}
"""Metrics in the order of the tables, and their headings; LM loss is there where the recipe names texts."""
LANGUAGE = {"lm_loss": "LM loss, nats a token"}
COLUMNS = GREEDY | SAMPLED


def build(
    *,
    run: str,
    recipe: Mapping[str, Any],
    estimates: Tables,
    differences: Tables,
    by_source: Mapping[str, tuple[int, Tables, Tables]],
    samples: Sequence[Mapping[str, str]],
    prompts: int,
    data: Iterable[DataIdentity],
    parents: Mapping[str, Found],
    resources: Resources,
    device: str,
) -> dict[str, Any]:
    """The content of summary.json. by_source: number of prompts, estimates and differences of each source alone."""

    def plain(tables: Tables) -> dict[str, dict[str, dict[str, float]]]:
        return {key: {name: one.as_dict() for name, one in row.items()} for key, row in tables.items()}

    content: dict[str, Any] = {
        "schema_version": SCHEMA,
        "run": run,
        "git": record.git_state().model_dump(),
        "machine": {"device": device, "cores": os.cpu_count(), "system": platform.platform()},
        "recipe": dict(recipe),
        "data": [one.model_dump() for one in data],
        "prompts": prompts,
        "models": plain(estimates),
        "differences": plain(differences),
        "by_source": {
            source: {"prompts": count, "models": plain(own), "differences": plain(changes)}
            for source, (count, own, changes) in by_source.items()
        },
        "samples": [dict(one) for one in samples],
        "stages": {
            **{name: found.record.resources.model_dump() for name, found in parents.items()},
            "compare": resources.model_dump(),
        },
    }
    if "reward" in parents:
        content["reward_model"] = {
            "pair_accuracy": {
                "mean": _metric(parents["reward"], "reward/eval_accuracy"),
                "low": _metric(parents["reward"], "reward/eval_accuracy_low"),
                "high": _metric(parents["reward"], "reward/eval_accuracy_high"),
            }
        }
    return content


def _metric(found: Found, name: str) -> float:
    if name not in found.record.metrics:
        raise RecordError(f"{found.folder / record.FILE}: metrics: there is no {name}. It was edited.")
    return found.record.metrics[name]


def lineage(parents: Mapping[str, Found], home: Path) -> dict[str, Any]:
    """Which record came from which, with the hashes of data and adapters: what W&B's lineage shows, offline."""
    nodes: dict[str, Any] = {}

    def visit(found: Found) -> None:
        if found.sha256 in nodes:
            return  # many ways may lead to one ancestor
        nodes[found.sha256] = {
            "stage": found.record.stage,
            "path": os.path.relpath(found.folder.resolve(), home.resolve()),
            "base": found.record.base.model_dump(),
            "files": {name: sha for name, sha in found.record.files.items() if name.startswith("adapter/")},
            "data": [one.model_dump() for one in found.record.data],
            "parents": {name: link.sha256 for name, link in found.record.parents.items()},
            "git": found.record.git.model_dump(),
        }
        for parent in found.parents.values():
            visit(parent)

    for found in parents.values():
        visit(found)
    return {"schema_version": SCHEMA, "records": nodes}


def show(content: Mapping[str, Any]) -> None:
    """Print table and samples of a summary."""
    from rich.text import Text

    screen = console()
    title = f"{content['run']}: {content['prompts']} held-out prompts, mean [95 % interval]"
    _show_table(screen, f"{title}; likeliest responses", content["models"], GREEDY)
    _show_table(screen, "responses sampled at temperature 1", content["models"], SAMPLED)
    _show_table(screen, "texts that are no tasks", content["models"], LANGUAGE)
    if "reward_model" in content:
        screen.print(f"reward model: held-out pair accuracy {_cell('', content['reward_model']['pair_accuracy'])}")
    _show_differences(screen, content["differences"])
    if len(content["by_source"]) > 1:
        for source, part in content["by_source"].items():
            screen.print(f"{source}, {part['prompts']} prompts:")
            _show_differences(screen, part["differences"])
    for sample in content["samples"]:
        screen.print()
        for name, text in sample.items():
            screen.print(Text(f"{name:>7}  ", style="bold") + Text(text.replace("\n", "\n         ")))
    screen.print()
    for stage, resources in content["stages"].items():
        on_gpu = resources.get("peak_gpu_bytes", 0)
        screen.print(
            f"{stage:>8}: {resources['seconds']:7.1f} s, peak memory {resources['peak_rss_bytes'] / 2**30:.2f} GiB"
            + (f", on the GPU {on_gpu / 2**30:.2f} GiB" if on_gpu else "")
        )


def _show_table(
    screen: "Console", title: str, models: Mapping[str, Mapping[str, Any]], columns: Mapping[str, str]
) -> None:
    from rich.table import Table

    named = [name for name in columns if any(name in row for row in models.values())]
    if not named:
        return
    table = Table(title=title)
    table.add_column("model", vertical="top")
    for name in named:
        table.add_column(columns[name], justify="right")
    for model, row in models.items():
        table.add_row(model, *(_cell(name, row.get(name)).replace(" [", "\n[") for name in named))
    screen.print(table)


def _show_differences(screen: "Console", differences: Mapping[str, Any]) -> None:
    for comparison, row in differences.items():
        for manner, columns in (("likeliest", GREEDY), ("sampled", SAMPLED), ("texts", LANGUAGE)):
            shown = [
                f"{heading} {_cell(name, row[name], sign=True)}"
                for name, heading in columns.items()
                if name in row and heading in ("correctness", "form", "check", "reward", *LANGUAGE.values())
            ]
            if shown:
                screen.print(f"{comparison}, {manner}, paired: {', '.join(shown)}")


def _cell(name: str, estimate: Mapping[str, float] | None, *, sign: bool = False) -> str:
    if estimate is None:
        return ""
    form = "{:+.{d}f} [{:+.{d}f}, {:+.{d}f}]" if sign else "{:.{d}f} [{:.{d}f}, {:.{d}f}]"
    digits = {"length": 1, "lm_loss": 3}.get(name, 2)
    return form.format(estimate["mean"], estimate["low"], estimate["high"], d=digits)
