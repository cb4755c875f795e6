"""The stage record, `stage.json`: what a finished stage is, written last and read strictly.

Stages meet on disk and nowhere else. A child reads its parents' records and verifies everything in them before it
loads a weight: files by hash, base and tokenizer by fingerprint, grandparents as well. Nothing is guessed.
"""

import hashlib
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from onebase.errors import RecordError
from onebase.files.json_file import read_object, short_path
from onebase.files.writing import canonical, hash_file, replace_file, short_hash
from onebase.model.identity import BaseIdentity, TokenizerIdentity
from onebase.recipe.sections import FrozenModel
from onebase.run import nearby
from onebase.run.checkout import GitState, git_state
from onebase.run.stage_files import require_unchanged

SCHEMA = 2
GENERATIONS = 100
ANCESTORS = 1000
FILE = "stage.json"
LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "accelerate", "wandb")


class ParentLink(FrozenModel):
    """A stage this one started from."""

    path: str
    """Relative to the folder of the record that holds the link: a whole run can be moved."""
    sha256: str
    """Hash of the parent's stage.json."""


class DataIdentity(FrozenModel):
    """Which rows went in."""

    source: str
    split: str | None
    revision: str | None
    kept: int
    dropped: dict[str, int]
    """Rows left out, by reason."""
    sha256: str
    """Hash of the kept records, in order; for source `limits`, which counts for all, of what it says."""


class Resources(FrozenModel):
    """Resources of the process that finished the stage: those that a resumed run had before are not in it."""

    seconds: float
    cpu_seconds: float = 0.0
    """Time of all its threads. Another process on the same cores does not change it. 0: not measured, in older
    records."""
    peak_rss_bytes: int
    peak_gpu_bytes: int = 0


class RunPart(FrozenModel):
    """What a run computed with from one step on, until the next part: a resumed run may find other versions."""

    first_step: int
    versions: dict[str, str]
    """Versions of Python, of Onebase (its commit, in a checkout), and of the libraries that compute."""
    threads: int
    """Threads of torch on the CPU."""
    device: str
    functions: dict[str, str]
    """Python functions that the recipe names: sha256 of their source."""


class StageRecord(FrozenModel):
    """Everything a child, or a reader a year later, must know of a finished stage."""

    schema_version: int = SCHEMA
    stage: str
    created: str
    base: BaseIdentity
    tokenizer: TokenizerIdentity
    files: dict[str, str]
    """sha256 of every file that is handed on or quoted (`onebase.run.stage_files`), by path relative to the folder."""
    parents: dict[str, ParentLink]
    recipe: dict[str, Any]
    data: list[DataIdentity]
    git: GitState
    versions: dict[str, str]
    metrics: dict[str, float]
    resources: Resources
    parts: list[RunPart] = Field(default_factory=list[RunPart])
    """One, unless the run was resumed in another environment."""

    @property
    def functions(self) -> dict[str, str]:
        """sha256 of the source of each function that the run ended with."""
        return self.parts[-1].functions if self.parts else {}


@dataclass(frozen=True, kw_only=True)
class FinishedStage:
    """A record that was read and verified."""

    folder: Path
    record: StageRecord
    sha256: str
    parents: "dict[str, FinishedStage]"

    @property
    def adapter(self) -> Path:
        return self.folder / "adapter"


def is_finished(folder: Path) -> bool:
    """Whether a stage has written its record here (it may still fail to verify)."""
    return (folder / FILE).is_file()


def write(folder: Path, record: StageRecord) -> Path:
    """Write `stage.json`, all of it or nothing, as the last act of a stage."""
    target = folder / FILE
    if target.exists():
        raise RecordError(
            f"{target}: exists already. A finished stage is never overwritten; use --restart to move it aside."
        )
    replace_file(target, _text_of(record))
    return target


def _text_of(record: StageRecord) -> str:
    return canonical(record.model_dump(mode="json"))


def sha256_of(record: StageRecord) -> str:
    """Hash of the `stage.json` that the record is written to."""
    return hashlib.sha256(_text_of(record).encode()).hexdigest()


def create(
    *,
    stage: str,
    folder: Path,
    base: BaseIdentity,
    tokenizer: TokenizerIdentity,
    files: Iterable[Path],
    parents: Mapping[str, FinishedStage],
    recipe: Mapping[str, Any],
    data: Iterable[DataIdentity],
    metrics: Mapping[str, float],
    resources: Resources,
    parts: Iterable[RunPart] = (),
) -> StageRecord:
    """A record of the files in `folder`, with hashes, versions and git state filled in."""
    return StageRecord(
        stage=stage,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        base=base,
        tokenizer=tokenizer,
        files={file.relative_to(folder).as_posix(): hash_file(file) for file in sorted(files)},
        parents={
            name: ParentLink(path=os.path.relpath(parent.folder.resolve(), folder.resolve()), sha256=parent.sha256)
            for name, parent in parents.items()
        },
        recipe=dict(recipe),
        data=list(data),
        git=git_state(),
        versions={name: metadata.version(name) for name in LIBRARIES},
        metrics=finite(metrics),
        resources=resources,
        parts=list(parts),
    )


def finite(metrics: Mapping[str, float]) -> dict[str, float]:
    """What a record can say: the last step's loss may be NaN where its update was skipped, and JSON has none."""
    return {name: value for name, value in metrics.items() if math.isfinite(value)}


def read(folder: Path, *, stage: str | None = None) -> FinishedStage:
    """The record in `folder`, with its files and all its ancestors verified; RecordError for anything that is off.

    stage: which stage it must be of; None takes any.
    """
    return _read(Path(folder), stage, (), {})


def _read(
    folder: Path, stage: str | None, descendants: tuple[Path, ...], verified: dict[Path, FinishedStage]
) -> FinishedStage:
    """verified: the folders that were read already. Two ways may lead to one ancestor, and ten such ones to 2^10."""
    place = folder.resolve()
    if place in descendants:
        raise RecordError(f"{folder}: is its own ancestor: the records were edited. Train the stages again.")
    if place in verified:
        return verified[place]
    if len(descendants) >= GENERATIONS or len(verified) >= ANCESTORS:
        raise RecordError(f"{folder}: more ancestors than any run has: the records were edited. Train them again.")
    record, sha256 = _parse(folder, stage)
    if stage is not None and record.stage != stage:
        raise RecordError(
            f"{folder}: expected a run of stage '{stage}', found stage '{record.stage}'. "
            f"Pass the {stage} run with parents.{stage}=runs/<name>/{stage}.{nearby.question(folder, stage)}"
        )
    require_unchanged(folder, record.files, record=folder / FILE)
    parents = {
        name: _read_parent(folder, name, link, (*descendants, place), verified) for name, link in record.parents.items()
    }
    verified[place] = FinishedStage(folder=folder, record=record, sha256=sha256, parents=parents)
    return verified[place]


def _parse(folder: Path, stage: str | None) -> tuple[StageRecord, str]:
    path = folder / FILE
    try:
        if not path.exists():
            raise RecordError(f"{folder}: {nearby.describe(folder, stage)}")
    except OSError as error:
        raise RecordError(f"{short_path(folder)}: is not a stage folder ({error.strerror}). Check the path.") from None
    content, raw = read_object(path)
    version = content.get("schema_version")
    if version != SCHEMA:
        raise RecordError(
            f"{path}: expected schema version {SCHEMA}, found {str(version)[:40]}. "
            "It was written by another Onebase; use that one, or train the stage again."
        )
    try:
        return StageRecord.model_validate(content), hashlib.sha256(raw).hexdigest()
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise RecordError(f"{path}: {key}: {first['msg']}: damaged or edited. Train the stage again.") from None


def _read_parent(
    folder: Path, name: str, link: ParentLink, descendants: tuple[Path, ...], verified: dict[Path, FinishedStage]
) -> FinishedStage:
    place = folder / link.path
    try:
        finished = is_finished(place)
        resolved = place.resolve()
    except (OSError, ValueError, RuntimeError):  # thousands of letters, a NUL, links in a circle
        finished, resolved = False, place
    if not finished:
        raise RecordError(
            f"{folder / FILE}: its parent '{name}' should be in {short_path(place)}, and there is no finished stage. "
            "It was moved or deleted; put it back, or train this stage again."
        )
    # Where the path goes through a link, `..` behind it is not what it reads as.
    plain = Path(os.path.normpath(place))
    parent = _read(plain if plain.resolve() == resolved else resolved, None, descendants, verified)
    if parent.sha256 != link.sha256:
        raise RecordError(
            f"{place / FILE}: is not the record that {folder / FILE} was made from "
            f"(expected sha256 {link.sha256[:12]}..., found {parent.sha256[:12]}...). "
            f"Its {name} stage was trained again or edited; train this stage again."
        )
    return parent


def require_same_base(finished: FinishedStage, base: BaseIdentity) -> None:
    """RecordError unless `finished` was trained on this very base in this quantisation."""
    theirs = finished.record.base
    checks = (
        ("hidden_layers", "layers", "base.model"),
        ("vocabulary", "vocabulary size", "base.model"),
        ("config_sha256", "configuration", "base.model"),
        ("weights_sha256", "weights", "base.model"),
        ("quantization", "quantisation", "base.quantization"),
    )
    for field, words, key in checks:
        expected, actual = getattr(theirs, field), getattr(base, field)
        if expected != actual:
            raise RecordError(
                f"{key}: {finished.folder} was trained on a base with other {words}: expected {short_hash(expected)} "
                f"({theirs.model}), found {short_hash(actual)} ({base.model}). "
                "An adapter only fits the base it was trained on."
            )


def require_descends(child: FinishedStage, name: str, parent: FinishedStage) -> None:
    """RecordError unless `child` was trained from this very `parent` stage."""
    link = child.record.parents.get(name)
    if link is None or link.sha256 != parent.sha256:
        raise RecordError(
            f"parents: {child.folder} does not descend from {parent.folder}: its '{name}' parent is "
            f"{'none' if link is None else link.path}. "
            f"Pass stages of one run, or train it again from this {name} stage."
        )
