"""summary.json and lineage.json: the results of a run and the origin of everything in it; and its tables."""

import os
import platform
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evaluation.statistics import Estimate, interval_text
from onebase.errors import RecordError
from onebase.run import record
from onebase.run.checkout import git_state
from onebase.run.record import DataIdentity, FinishedStage, Resources
from onebase.terminal import console

if TYPE_CHECKING:
    from rich.console import Console

SCHEMA = 2

Tables = Mapping[str, Mapping[str, Estimate]]
"""Estimates by model or comparison, then by metric."""

GREEDY = {
    "correctness": "correctness",
    "form": "form",
    "task_score": "task score",
    "reward": "reward",
    "length": "length",
    "stop_rate": "stopped",
}
SAMPLED = {
    "sampled_correctness": "correctness",
    "sampled_form": "form",
    "sampled_task_score": "task score",
    "sampled_reward": "reward",
    "kl_to_sft": "KL to SFT",
}
"""Metrics in the order of the tables, and their headings."""
LANGUAGE = {"lm_loss": "LM loss, nats a token"}


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
    parents: Mapping[str, FinishedStage],
    resources: Resources,
    device: str,
) -> dict[str, Any]:
    """The content of summary.json. by_source: number of prompts, estimates and differences of each source alone."""

    def plain(tables: Tables) -> dict[str, dict[str, dict[str, float]]]:
        return {key: {name: estimate.as_dict() for name, estimate in row.items()} for key, row in tables.items()}

    content: dict[str, Any] = {
        "schema_version": SCHEMA,
        "run": run,
        "git": git_state().model_dump(),
        "machine": {"device": device, "cores": os.cpu_count(), "system": platform.platform()},
        "recipe": dict(recipe),
        "data": [identity.model_dump() for identity in data],
        "prompts": prompts,
        "models": plain(estimates),
        "differences": plain(differences),
        "by_source": {
            source: {"prompts": count, "models": plain(models), "differences": plain(changes)}
            for source, (count, models, changes) in by_source.items()
        },
        "samples": [dict(sample) for sample in samples],
        "stages": {
            **{name: stage.record.resources.model_dump() for name, stage in parents.items()},
            "compare": resources.model_dump(),
        },
    }
    if "reward" in parents:
        suffixes = {"mean": "", "low": "_low", "high": "_high"}
        accuracy = {
            edge: _metric(parents["reward"], f"reward/eval_accuracy{suffix}") for edge, suffix in suffixes.items()
        }
        content["reward_model"] = {"pair_accuracy": accuracy}
    return content


def _metric(stage: FinishedStage, name: str) -> float:
    if name not in stage.record.metrics:
        raise RecordError(f"{stage.folder / record.FILE}: metrics: there is no {name}. It was edited.")
    return stage.record.metrics[name]


def lineage(parents: Mapping[str, FinishedStage], home: Path) -> dict[str, Any]:
    """Which record came from which, with the hashes of data and adapters: W&B's lineage, offline."""
    nodes: dict[str, Any] = {}
    waiting = deque(parents.values())
    while waiting:
        stage = waiting.popleft()
        if stage.sha256 in nodes:
            continue  # several stages may have one ancestor
        nodes[stage.sha256] = {
            "stage": stage.record.stage,
            "path": os.path.relpath(stage.folder.resolve(), home.resolve()),
            "base": stage.record.base.model_dump(),
            "files": {name: sha for name, sha in stage.record.files.items() if name.startswith("adapter/")},
            "data": [identity.model_dump() for identity in stage.record.data],
            "parents": {name: link.sha256 for name, link in stage.record.parents.items()},
            "git": stage.record.git.model_dump(),
        }
        waiting.extend(stage.parents.values())
    return {"schema_version": 1, "records": nodes}


def show(content: Mapping[str, Any]) -> None:
    """Print table and samples of a summary."""
    from rich.text import Text

    screen = console()
    title = f"{content['run']}: {content['prompts']} held-out prompts, mean [95 % interval]"
    _show_table(screen, f"{title}; greedy responses", content["models"], GREEDY)
    _show_table(screen, "responses sampled at temperature 1", content["models"], SAMPLED)
    _show_table(screen, "loss of general texts", content["models"], LANGUAGE)
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
    from rich.table import Column, Table

    named = [name for name in columns if any(name in row for row in models.values())]
    if not named:
        return
    table = Table("model", *(Column(columns[name], justify="right") for name in named), title=title)
    for model, row in models.items():
        table.add_row(model, *(_cell(name, row.get(name)).replace(" [", "\n[") for name in named))
    screen.print(table)


def _show_differences(screen: "Console", differences: Mapping[str, Any]) -> None:
    for comparison, row in differences.items():
        for manner, columns in (("greedy", GREEDY), ("sampled", SAMPLED), ("texts", LANGUAGE)):
            shown = [
                f"{heading} {_cell(name, row[name], sign=True)}"
                for name, heading in columns.items()
                if name in row and heading in ("correctness", "form", "task score", "reward", *LANGUAGE.values())
            ]
            if shown:
                screen.print(f"{comparison}, {manner}, paired: {', '.join(shown)}")


def _cell(name: str, estimate: Mapping[str, float] | None, *, sign: bool = False) -> str:
    if estimate is None:
        return ""
    digits = {"length": 1, "lm_loss": 3}.get(name, 2)
    return interval_text(estimate, f"{'+' if sign else ''}.{digits}f")
