"""What decides a run's result besides its recipe, and what is done where it has changed.

    base, tokenizer and chat template, parents, data, functions      must stay: another one would be another run
    versions, threads, device                                        may change: a warning, and the record holds both

A checkpoint holds it, and a resumed run is compared with it. A finished stage's record holds it, and the same command
is compared with that.

A function that has ended the run by an error may be fixed. The record holds that change too.
"""

import contextlib
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError

from onebase.errors import RecordError
from onebase.files.writing import canonical, replace_file, short_hash
from onebase.model.identity import BaseIdentity, TokenizerIdentity
from onebase.run.checkout import git_state
from onebase.run.record import DataIdentity, RunPart, StageRecord
from onebase.terminal import say

COMPUTES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "accelerate", "tokenizers", "numpy")
FAILURE = "failure.json"
"""In the stage's folder from a step's error to the next save."""
_PARTS = TypeAdapter(list[RunPart])

_BASE = {"weights_sha256": "base weights", "config_sha256": "base configuration", "quantization": "quantisation"}
_TOKENS = {
    "tokenizer_sha256": "tokenizer",
    "template_sha256": "chat template or system message",
    "pad_id": "pad token",
    "stop_ids": "stop tokens",
}


@dataclass(frozen=True, kw_only=True)
class Change:
    """Something that is another one than before."""

    what: str
    before: str
    now: str

    def __str__(self) -> str:
        return f"{self.what}: it had {short_hash(self.before)}, and it is {short_hash(self.now)} now"


@dataclass(kw_only=True)
class RunIdentity:
    """Of one run, in one process."""

    base: BaseIdentity
    tokenizer: TokenizerIdentity
    parents: Mapping[str, str]
    """sha256 of the record of each."""
    data: Sequence[DataIdentity]
    functions: Mapping[str, str] = field(default_factory=dict[str, str])
    """sha256 of the source of each Python function that the recipe names (`onebase.custom.function_source`)."""
    parts: list[RunPart] = field(default_factory=list[RunPart])
    """What the run computed with so far, from its first step on; from `begin` or `resume`."""

    def as_state(self) -> dict[str, Any]:
        """What a checkpoint holds: plain values."""
        return {**self._fixed(), "parts": [part.model_dump(mode="json") for part in self.parts]}

    def begin(self) -> None:
        """A run that starts at its first step."""
        self.parts = [self._part(1)]

    def resume(self, saved: Any, step: int, *, fixed: bool, stage: str) -> None:
        """A run that resumes after `step` from a checkpoint's `as_state`; RecordError where it would be another run.

        fixed: whether the run ended by an error of one of its functions.
        """
        part = self._part(step + 1)
        if not isinstance(saved, Mapping):
            raise RecordError(
                f"{stage}: the checkpoint of step {step} does not say what it was made of: by another "
                "Onebase, or edited. Start again with --restart."
            )
        changes = changes_between(saved, self._fixed())
        refused = [change for change in changes if not (fixed and change.what.startswith("function "))]
        if refused:
            raise RecordError(
                f"{stage}: resuming after step {step} would mix two runs: {_listed(refused)}. "
                "Put back what it had, or start again with --restart."
            )
        try:
            self.parts = _PARTS.validate_python(saved["parts"])
        except (KeyError, ValidationError):
            self.parts = []
        if not self.parts:
            raise RecordError(f"{stage}: the checkpoint's parts are damaged. Start again with --restart.")
        moved = [*changes, *_moved(self.parts[-1], part)]
        if moved:
            say(
                f"{stage}: resumes after step {step} with another environment, and the record will hold both: "
                f"{_listed(moved)}. Last bits may differ."
            )
            self.parts = [earlier for earlier in self.parts if earlier.first_step < part.first_step] + [part]

    def _fixed(self) -> dict[str, Any]:
        return {
            "base": self.base.model_dump(mode="json"),
            "tokenizer": self.tokenizer.model_dump(mode="json"),
            "parents": dict(self.parents),
            "data": [[rows.source, rows.split, rows.sha256] for rows in self.data],
            "functions": dict(self.functions),
        }

    def _part(self, first_step: int) -> RunPart:
        return RunPart(
            first_step=first_step,
            versions=versions(),
            threads=torch.get_num_threads(),
            device=torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
            functions=dict(self.functions),
        )

    def require_of(self, finished: StageRecord, *, where: str) -> None:
        """RecordError where a finished stage was made of anything else than what the same recipe gives today."""
        record = RunIdentity(
            base=finished.base,
            tokenizer=finished.tokenizer,
            parents={name: link.sha256 for name, link in finished.parents.items()},
            data=finished.data,
            functions=finished.functions,
        )
        changes = changes_between(record._fixed(), self._fixed())
        if changes:
            raise RecordError(
                f"{where}: finished, and something else than now went in: {_listed(changes)}. Put back what it had, "
                "or pass --restart to move it aside and train again."
            )


def note_failure(folder: Path, step: int, error: Exception, functions: Mapping[str, str]) -> None:
    """Remember that a step has ended by an error: the function at fault may then be fixed."""
    content = {"step": step, "error": f"{type(error).__name__}: {error}"[:2000], "functions": dict(functions)}
    with contextlib.suppress(OSError):  # the error itself is what the user must hear of
        replace_file(folder / FAILURE, canonical(content))


def versions() -> dict[str, str]:
    """Of what computes."""
    commit = git_state().commit
    if commit is None:
        with contextlib.suppress(metadata.PackageNotFoundError):  # run from a folder, not installed
            commit = metadata.version("onebase")
    return {"python": platform.python_version(), "onebase": commit or "unknown"} | {
        name: metadata.version(name) for name in COMPUTES
    }


def changes_between(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[Change]:
    """What differs between two identities as plain values, the causes before what follows from them."""
    changes: list[Change] = []
    for part, fields in (("base", _BASE), ("tokenizer", _TOKENS)):
        changes += _differing(before.get(part), now[part], fields)
    changes += _differing_by_name("parent", before.get("parents"), now["parents"])
    changes += _data_changes(before.get("data"), now["data"])
    changes += _differing_by_name("function", before.get("functions"), now["functions"])
    return changes


def _differing_by_name(kind: str, before: Any, now: Mapping[str, Any]) -> list[Change]:
    """Also what only one of the two has."""
    return _differing(before, now, {name: f"{kind} {name}" for name in dict.fromkeys([*_mapping(before), *now])})


def _differing(before: Any, now: Mapping[str, Any], names: Mapping[str, str]) -> list[Change]:
    had = _mapping(before)
    return [
        Change(what=words, before=str(had.get(key)), now=str(now.get(key)))
        for key, words in names.items()
        if had.get(key) != now.get(key)
    ]


def _data_changes(before: Any, now: Sequence[Sequence[Any]]) -> list[Change]:
    had = [tuple(row) for row in before] if isinstance(before, list) else []
    changes = [
        Change(what=f"data {_source(new)}", before=str(old[-1]), now=str(new[-1]))
        for old, new in zip(had, now, strict=False)
        if old[-1] != new[-1]
    ]
    if len(had) != len(now):
        changes.append(Change(what="sources of data", before=str(len(had)), now=str(len(now))))
    return changes


def _source(data: Sequence[Any]) -> str:
    source, split, _ = data
    return source if split is None else f"{source} ({split})"


def _moved(before: RunPart, now: RunPart) -> Iterable[Change]:
    names = {name: name for name in dict.fromkeys([*before.versions, *now.versions])}
    yield from _differing(before.versions, now.versions, names)
    for name in ("threads", "device"):
        old, new = str(getattr(before, name)), str(getattr(now, name))
        if old != new:
            yield Change(what=name, before=old, now=new)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _listed(changes: Sequence[Change]) -> str:
    return "; ".join(map(str, changes))
