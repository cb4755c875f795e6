"""What decides a run's result besides its recipe, and what happens if it has changed.

    base, tokenizer and chat template, parents, data, functions      must stay: another one would be another run
    versions, threads, device                                        may change: a warning, and the record holds both

A checkpoint holds it, and a resumed run is compared with it. A finished stage's record holds it, and the same command
is compared with that.

A function that has ended the run by an error may be fixed. The record holds that change too.
"""

import contextlib
import platform
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, Field, ValidationError

from onebase.errors import RecordError
from onebase.files.writing import canonical, replace_file, short_hash
from onebase.model.identity import BaseIdentity, TokenizerIdentity
from onebase.run.checkout import git_state
from onebase.run.record import DataIdentity, RunPart, StageRecord
from onebase.terminal import say

COMPUTES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "tokenizers", "numpy")
FAILURE = "failure.json"
"""In the stage's folder from a step's error to the next save."""

FIELDS = (
    ("base", "weights_sha256", "base weights"),
    ("base", "config_sha256", "base configuration"),
    ("base", "quantization", "quantisation"),
    ("tokenizer", "tokenizer_sha256", "tokenizer"),
    ("tokenizer", "template_sha256", "chat template or system message"),
    ("tokenizer", "pad_id", "pad token"),
    ("tokenizer", "stop_ids", "stop tokens"),
)
"""What must stay of base and tokenizer, in words."""


class RunIdentity(BaseModel):
    """Identity of one run, in one process. A checkpoint holds it as JSON."""

    base: BaseIdentity
    tokenizer: TokenizerIdentity
    parents: dict[str, str]
    """sha256 of the record of each."""
    data: list[tuple[str, str | None, str]]
    """Source, split and sha256 of each."""
    functions: dict[str, str] = Field(default_factory=dict[str, str])
    """sha256 of the source of each Python function that the recipe names (`onebase.custom.function_source`)."""
    parts: list[RunPart] = Field(default_factory=list[RunPart])
    """What the run computed with so far, from its first step on; from `begin` or `resume`."""

    def begin(self) -> None:
        """A run that starts at its first step."""
        self.parts = [self._part(1)]

    def resume(self, saved: Any, step: int, *, fixed: bool, stage: str) -> None:
        """A run that resumes after `step` from what a checkpoint holds; RecordError where it would be another run.

        fixed: whether the run ended by an error of one of its functions.
        """
        part = self._part(step + 1)
        with contextlib.suppress(ValidationError):
            saved = RunIdentity.model_validate(saved)
        if not isinstance(saved, RunIdentity) or not saved.parts:
            raise RecordError(
                f"{stage}: the checkpoint of step {step} does not say what it was made of: by another "
                "Onebase, or edited. Start again with --restart."
            )
        changes = self._changes_since(saved)
        refused = [change for what, change in changes.items() if not (fixed and what.startswith("function "))]
        if refused:
            raise RecordError(
                f"{stage}: resuming after step {step} would mix two runs: {'; '.join(refused)}. "
                "Put back what it had, or start again with --restart."
            )
        self.parts = saved.parts
        moved = changes | _moved(self.parts[-1], part)
        if moved:
            say(
                f"{stage}: resumes after step {step} with another environment, and the record will hold both: "
                f"{'; '.join(moved.values())}. Last bits may differ."
            )
            self.parts = [earlier for earlier in self.parts if earlier.first_step < part.first_step] + [part]

    def _part(self, first_step: int) -> RunPart:
        return RunPart(
            first_step=first_step,
            versions=versions(),
            threads=torch.get_num_threads(),
            device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            functions=self.functions,
        )

    def require_of(self, finished: StageRecord, *, where: str) -> None:
        """RecordError where a finished stage was made of anything else than what the same recipe gives today."""
        before = RunIdentity(
            base=finished.base,
            tokenizer=finished.tokenizer,
            parents={name: link.sha256 for name, link in finished.parents.items()},
            data=triples(finished.data),
            functions=finished.functions,
        )
        changes = self._changes_since(before)
        if changes:
            raise RecordError(
                f"{where}: finished, and something else than now went in: {'; '.join(changes.values())}. "
                "Put back what it had, or pass --restart to move it aside and train again."
            )

    def _changes_since(self, before: "RunIdentity") -> dict[str, str]:
        """What differs, the causes before what follows from them. Data counts by its rows, wherever it lies."""
        rows: list[tuple[str, Any, Any]] = [
            (words, getattr(getattr(before, part), key), getattr(getattr(self, part), key))
            for part, key, words in FIELDS
        ]
        rows += _pairs("parent ", before.parents, self.parents)
        for then, now in zip(before.data, self.data, strict=False):
            rows.append((f"data {now[0]}{'' if now[1] is None else f' ({now[1]})'}", then[-1], now[-1]))
        rows.append(("sources of data", len(before.data), len(self.data)))
        return _changes(rows + _pairs("function ", before.functions, self.functions))


def triples(data: Iterable[DataIdentity]) -> list[tuple[str, str | None, str]]:
    """What a run goes by, of its data."""
    return [(rows.source, rows.split, rows.sha256) for rows in data]


def note_failure(folder: Path, step: int, error: Exception, functions: Mapping[str, str]) -> None:
    """Remember that a step has ended by an error: the function at fault may then be fixed."""
    content = {"step": step, "error": f"{type(error).__name__}: {error}"[:2000], "functions": dict(functions)}
    with contextlib.suppress(OSError):  # the error itself is what the user must hear of
        replace_file(folder / FAILURE, canonical(content))


def versions() -> dict[str, str]:
    """Versions of Python, of Onebase, and of the libraries that compute."""
    commit = git_state().commit
    if commit is None:
        with contextlib.suppress(metadata.PackageNotFoundError):  # run from a folder, not installed
            commit = metadata.version("onebase")
    return {"python": platform.python_version(), "onebase": commit or "unknown"} | {
        name: metadata.version(name) for name in COMPUTES
    }


def _moved(before: RunPart, now: RunPart) -> dict[str, str]:
    """What computes, and is another one now."""
    parts = [{**part.versions, "threads": part.threads, "device": part.device} for part in (before, now)]
    return _changes(_pairs("", *parts))


def _pairs(kind: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Also what only one of the two has."""
    return [(f"{kind}{name}", before.get(name), now.get(name)) for name in {**before, **now}]


def _changes(rows: Iterable[tuple[str, Any, Any]]) -> dict[str, str]:
    """In words, by what has changed: of (what, before, now) those that differ."""
    return {
        what: f"{what}: it had {short_hash(before)}, and it is {short_hash(now)} now"
        for what, before, now in rows
        if before != now
    }
