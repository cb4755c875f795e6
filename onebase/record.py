"""The stage record, `stage.json`: what a finished stage is, written last and read strictly.

Stages meet on disk and nowhere else. A child reads its parents' records and verifies everything in them before it
loads a weight: files by hash, base and tokenizer by fingerprint, grandparents as well. Nothing is guessed.
"""

import contextlib
import hashlib
import json
import math
import os
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from onebase import nearby
from onebase.disk import as_disk_error, create_file, hash_file, sync
from onebase.errors import RecordError
from onebase.json_file import read_object, short_path
from onebase.recipes import Section
from onebase.stage_files import require_unchanged

SCHEMA = 2
READABLE = (1, 2)
"""Of a record of version 1 what it lists is verified: adapter and tokenizer, no metrics. It names no functions."""
GENERATIONS = 100
ANCESTORS = 1000
FILE = "stage.json"
LIBRARIES = ("torch", "transformers", "peft", "trl", "bitsandbytes", "datasets", "accelerate", "wandb")


class BaseIdentity(Section):
    """Which frozen model, exactly: two bases of the same shape differ in their weights' hash."""

    model: str
    revision: str | None
    quantization: str
    config_sha256: str
    weights_sha256: str
    vocabulary: int
    hidden_layers: int


class TokenizerIdentity(Section):
    """Which tokens a conversation becomes."""

    tokenizer_sha256: str
    template_sha256: str
    """Of the chat template and the system message."""
    pad_id: int
    stop_ids: list[int]


class ParentLink(Section):
    """A stage this one started from."""

    path: str
    """Relative to the folder of the record that holds the link, so that a whole run can be moved."""
    sha256: str
    """Of the parent's stage.json."""


class DataIdentity(Section):
    """Which rows went in."""

    source: str
    split: str | None
    revision: str | None
    kept: int
    dropped: dict[str, int]
    """Rows left out, by reason."""
    sha256: str
    """Of the kept records, in order; of source `limits`, which counts for all, of what it says."""


class GitState(Section):
    commit: str | None
    dirty: bool | None


class Resources(Section):
    """Of the process that finished the stage: those that a resumed run had before are not in it."""

    seconds: float
    cpu_seconds: float = 0.0
    """Of all its threads. Another process on the same cores does not change it. 0: not measured, in older records."""
    peak_rss_bytes: int
    peak_gpu_bytes: int = 0


class RunPart(Section):
    """What a run computed with from one step on, until the next part: a run that goes on may find other versions."""

    first_step: int
    versions: dict[str, str]
    """Of Python, of Onebase (its commit, in a checkout), and of the libraries that compute."""
    threads: int
    """Of torch on the CPU."""
    device: str
    functions: dict[str, str]
    """Python functions that the recipe names: sha256 of their source."""


class StageRecord(Section):
    """Everything a child, or a reader a year later, must know of a finished stage."""

    schema_version: int = SCHEMA
    stage: str
    created: str
    base: BaseIdentity
    tokenizer: TokenizerIdentity
    files: dict[str, str]
    """sha256 of every file that is handed on or quoted (`onebase.stage_files`), by path relative to the folder."""
    parents: dict[str, ParentLink]
    recipe: dict[str, Any]
    data: list[DataIdentity]
    git: GitState
    versions: dict[str, str]
    metrics: dict[str, float]
    resources: Resources
    parts: list[RunPart] = Field(default_factory=list[RunPart])
    """One, unless the run went on in another environment. Records of version 1 have none."""

    @property
    def functions(self) -> dict[str, str] | None:
        """sha256 of the source of each function that the run ended with; None where the record does not say."""
        return self.parts[-1].functions if self.parts else None


@dataclass(frozen=True, kw_only=True)
class Found:
    """A record that was read and verified."""

    folder: Path
    record: StageRecord
    sha256: str
    parents: "dict[str, Found]"

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
    """Of the `stage.json` that it is written to."""
    return hashlib.sha256(_text_of(record).encode()).hexdigest()


def replace_file(target: Path, text: str) -> None:
    """Write through a temporary sibling, so that a reader (or a power cut) sees the old file or the whole new one."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        with os.fdopen(create_file(temporary), "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, target)
        sync(target.parent)
    except OSError as error:
        told = as_disk_error(error, target.parent)  # while what was written still takes its room
        with contextlib.suppress(OSError):
            temporary.unlink()
        if told is None:
            raise
        raise told from error


def canonical(content: Any) -> str:
    """JSON with sorted keys, so that equal content has equal bytes."""
    return json.dumps(content, sort_keys=True, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def create(
    *,
    stage: str,
    folder: Path,
    base: BaseIdentity,
    tokenizer: TokenizerIdentity,
    files: Iterable[Path],
    parents: Mapping[str, Found],
    recipe: Section,
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
            name: ParentLink(path=os.path.relpath(found.folder.resolve(), folder.resolve()), sha256=found.sha256)
            for name, found in parents.items()
        },
        recipe=recipe.model_dump(mode="json"),
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


def read(folder: Path, *, stage: str | None = None) -> Found:
    """The record in `folder`, with its files and all its ancestors verified; RecordError for anything that is off.

    stage: which stage it must be of; None takes any.
    """
    return _read(Path(folder), stage, (), {})


def _read(folder: Path, stage: str | None, descendants: tuple[Path, ...], verified: dict[Path, Found]) -> Found:
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
    verified[place] = Found(folder=folder, record=record, sha256=sha256, parents=parents)
    return verified[place]


def _parse(folder: Path, stage: str | None) -> tuple[StageRecord, str]:
    path = folder / FILE
    try:
        if not path.exists():
            raise RecordError(f"{folder}: {nearby.describe(folder, stage)}")
    except OSError as error:
        raise RecordError(f"{short_path(folder)}: is no stage folder ({error.strerror}). Check the path.") from None
    content, raw = read_object(path)
    version = content.get("schema_version")
    if version not in READABLE or isinstance(version, bool):
        raise RecordError(
            f"{path}: expected schema version {' or '.join(map(str, READABLE))}, found {str(version)[:40]}. "
            "It was written by another Onebase; use that one, or train the stage again."
        )
    try:
        return StageRecord.model_validate(content), hashlib.sha256(raw).hexdigest()
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise RecordError(f"{path}: {key}: {first['msg']}: damaged or edited. Train the stage again.") from None


def _read_parent(
    folder: Path, name: str, link: ParentLink, descendants: tuple[Path, ...], verified: dict[Path, Found]
) -> Found:
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
    found = _read(plain if plain.resolve() == resolved else resolved, None, descendants, verified)
    if found.sha256 != link.sha256:
        raise RecordError(
            f"{place / FILE}: is not the record that {folder / FILE} was made from "
            f"(expected sha256 {link.sha256[:12]}..., found {found.sha256[:12]}...). "
            f"Its {name} stage was trained again or edited; train this stage again."
        )
    return found


def require_same_base(found: Found, base: BaseIdentity) -> None:
    """RecordError unless `found` was trained on this very base in this quantisation."""
    theirs = found.record.base
    checks = (
        ("hidden_layers", "layers", "base.model"),
        ("vocabulary", "vocabulary size", "base.model"),
        ("config_sha256", "configuration", "base.model"),
        ("weights_sha256", "weights", "base.model"),
        ("quantization", "quantisation", "base.quantization"),
    )
    for field, words, key in checks:
        expected, given = getattr(theirs, field), getattr(base, field)
        if expected != given:
            raise RecordError(
                f"{key}: {found.folder} was trained on a base with other {words}: expected {_short(expected)} "
                f"({theirs.model}), found {_short(given)} ({base.model}). "
                "An adapter only fits the base it was trained on."
            )


def require_same_tokenizer(found: Found, tokenizer: TokenizerIdentity) -> None:
    """RecordError unless prompts become the same tokens as in `found`."""
    theirs = found.record.tokenizer
    checks = (
        ("tokenizer_sha256", "tokenizer", "Use the base's own tokenizer files."),
        (
            "template_sha256",
            "chat template or system message",
            "Give chat.template and chat.system as that stage had them.",
        ),
        ("pad_id", "pad token", "Use the base's own tokenizer files."),
        ("stop_ids", "stop tokens", "Use the base's own generation_config.json."),
    )
    for field, words, advice in checks:
        expected, given = getattr(theirs, field), getattr(tokenizer, field)
        if expected != given:
            raise RecordError(
                f"chat: {found.folder} was trained with another {words}: expected {_short(expected)}, "
                f"found {_short(given)}. {advice}"
            )


def require_descends(child: Found, name: str, parent: Found) -> None:
    """RecordError unless `child` was trained from this very `parent` stage."""
    link = child.record.parents.get(name)
    if link is None or link.sha256 != parent.sha256:
        raise RecordError(
            f"parents: {child.folder} does not descend from {parent.folder}: its '{name}' parent is "
            f"{'none' if link is None else link.path}. "
            f"Pass stages of one run, or train it again from this {name} stage."
        )


def git_state() -> GitState:
    """Commit and whether tracked files differ from it, of the code that is running; None outside a checkout."""
    home = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(home), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != home:
            return GitState(commit=None, dirty=None)
        return GitState(
            commit=git("rev-parse", "HEAD"), dirty=bool(git("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return GitState(commit=None, dirty=None)


def _short(value: object) -> str:
    text = str(value)
    return text[:12] + "..." if len(text) == 64 else text
