"""What every stage does at its start and end: verify its parents, load what it needs, write its record.

A stage validates parents, data and limits before it loads a weight and before it creates its folder, so that a typo
costs seconds and leaves nothing behind.
"""

import os
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch

from onebase import base as bases
from onebase import folders, record, same_chat
from onebase.base import Base
from onebase.checkpoint import CheckpointSection
from onebase.dashboard import artifact_name, version_of
from onebase.disk import sync
from onebase.errors import InputError
from onebase.function_source import source_sha256
from onebase.identity import RunIdentity
from onebase.recipes import BaseSection, ChatSection, Section, TrackSection
from onebase.record import BaseIdentity, DataIdentity, Found, Resources, StageRecord, TokenizerIdentity
from onebase.roles import Roles
from onebase.same_chat import ChatTexts
from onebase.session import Session
from onebase.stage_files import quoted_files
from onebase.tracking import peak_rss_bytes


@runtime_checkable
class ModelRecipe(Protocol):
    """A recipe that says which model and which tokens."""

    @property
    def base(self) -> BaseSection: ...
    @property
    def chat(self) -> ChatSection: ...


@runtime_checkable
class StageRecipe(ModelRecipe, Protocol):
    """What the recipes of all stages have in common."""

    @property
    def track(self) -> TrackSection: ...
    @property
    def checkpoint(self) -> CheckpointSection: ...
    @property
    def out(self) -> Path: ...


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Base and tokenizer of a run, known before a weight is loaded."""

    base: BaseIdentity
    tokenizer: TokenizerIdentity
    base_section: BaseSection
    chat_section: ChatSection
    """Which they were computed of."""

    @property
    def texts(self) -> ChatTexts:
        return ChatTexts.of_recipe(self.base_section, self.chat_section)


def loaded_identity(recipe: ModelRecipe, base: Base) -> Identity:
    return Identity(
        base=base.identity, tokenizer=base.tokenizer_identity, base_section=recipe.base, chat_section=recipe.chat
    )


def run_identity(
    identity: Identity,
    parents: Mapping[str, Found],
    data: Iterable[DataIdentity],
    *,
    functions: Iterable[str] = (),
) -> RunIdentity:
    """What a run goes by. functions: that the recipe names, as `package.module:name`."""
    return RunIdentity(
        base=identity.base,
        tokenizer=identity.tokenizer,
        parents={name: found.sha256 for name, found in parents.items()},
        data=list(data),
        functions={one: source_sha256(one) for one in sorted(set(functions))},
    )


def require_one_process(stage: str) -> None:
    """InputError under a launcher with several processes: no stage is built and tested for that yet."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes > 1:
        raise InputError(
            f"{stage} runs in one process, and the launcher started {processes} (num_processes). "
            f"Start it with `python -m {stage} RECIPE.yaml`."
        )


def identify(recipe: ModelRecipe) -> Identity:
    return identity_of(recipe.base, recipe.chat)


def identity_of(base: BaseSection, chat: ChatSection) -> Identity:
    identities = bases.identify(base, chat)
    return Identity(base=identities[0], tokenizer=identities[1], base_section=base, chat_section=chat)


def read_parent(folder: Path, stage: str | None, identity: Identity) -> Found:
    """A finished stage (None: any) that was trained on this very base with these very tokens; RecordError otherwise."""
    found = record.read(folder, stage=stage)
    record.require_same_base(found, identity.base)
    same_chat.require(found, identity.tokenizer, lambda: identity.texts)
    return found


def open_session(
    recipe: StageRecipe,
    stage: str,
    config: Section,
    *,
    parents: Mapping[str, Found],
    data: Iterable[DataIdentity],
    state_bytes: int,
    identity: RunIdentity | None = None,
) -> Session:
    """Creates the stage's folder, or goes on in it: from here on there is something to lose.

    state_bytes: of a checkpoint, as `onebase.learning.state_bytes` estimates it. identity: what the run goes by, where
    the base is loaded already; else it is computed from the recipe, parents and data.
    """
    if identity is None:
        identity = run_identity(identify(recipe), parents, data)
    return Session(
        recipe.out,
        stage,
        track=recipe.track,
        checkpoint=recipe.checkpoint,
        recipe=config.model_dump(mode="json"),
        state_bytes=state_bytes,
        identity=identity,
    )


class Stopwatch:
    """What this process has taken since it was made."""

    def __init__(self) -> None:
        self._started, self._cpu = time.perf_counter(), time.process_time()

    @property
    def resources(self) -> Resources:
        return Resources(
            seconds=round(time.perf_counter() - self._started, 1),
            cpu_seconds=round(time.process_time() - self._cpu, 1),
            peak_rss_bytes=peak_rss_bytes(),
            peak_gpu_bytes=peak_gpu_bytes(),
        )


def finish(
    *,
    stage: str,
    recipe: StageRecipe,
    config: Section,
    base: Base,
    roles: Roles,
    role: str,
    parents: Mapping[str, Found],
    data: Iterable[DataIdentity],
    metrics: Mapping[str, float],
    watch: Stopwatch,
    session: Session,
) -> StageRecord:
    """Save the role and the tokenizer, tell the dashboard, and write the record last."""
    files = _hand_over(roles, role, base, recipe.out)
    # Nothing is written to these from here on: what follows only tells the dashboard.
    files += quoted_files(recipe.out)
    tracker, identity = session.tracker, session.identity
    tracker.sync()
    finished = record.create(
        stage=stage,
        folder=recipe.out,
        base=base.identity,
        tokenizer=base.tokenizer_identity,
        files=files,
        parents=parents,
        recipe=config,
        data=data,
        metrics=metrics,
        resources=watch.resources,
        parts=[] if identity is None else identity.parts,
    )
    # The record says that these are there: so they must be, also after a power cut.
    for path in files:
        sync(path)
    for folder in {path.parent for path in files}:
        sync(folder)
    tracker.summarise(metrics)
    tracker.artifact(
        recipe.out / "adapter",
        version=version_of(record.sha256_of(finished)),
        parents={role: _artifact_of(one) for role, one in parents.items()},
        details={"stage": stage, "base": base.identity.model},
    )
    record.write(recipe.out, finished)
    return finished


def _hand_over(roles: Roles, role: str, base: Base, out: Path) -> list[Path]:
    """Put `adapter/` and `tokenizer/` into a stage's folder, each whole or not at all; returns their files."""
    for half in out.glob(".handing-over.*"):  # of processes that were killed in here
        if half.suffix[1:].isdecimal() and not half.is_symlink():
            shutil.rmtree(half, ignore_errors=True)
    half = out / f".handing-over.{os.getpid()}"
    half.mkdir()  # and no link that somebody has put there
    try:
        roles.save(role, half / "adapter")
        base.tokenizer.save_pretrained(half / "tokenizer")
        for name in ("adapter", "tokenizer"):
            if os.path.lexists(out / name):  # no part of this run: it would be handed on as if it were
                folders.move_aside(out / name)
            os.rename(half / name, out / name)
        sync(out)
    finally:
        shutil.rmtree(half, ignore_errors=True)
    return [path for name in ("adapter", "tokenizer") for path in sorted((out / name).rglob("*")) if path.is_file()]


def _artifact_of(found: Found) -> str:
    """A parent's adapter, as its own run has told W&B of it."""
    track = found.record.recipe.get("track")
    group = track.get("group") if isinstance(track, dict) else None
    group = group if isinstance(group, str) else None
    return f"{artifact_name(found.folder, found.record.stage, group)}:{version_of(found.sha256)}"


def peaks() -> dict[str, float]:
    """What a step logs of memory, in bytes, at most so far: of the process, and of torch's allocator on a GPU."""
    own = {"memory/peak": float(peak_rss_bytes())}
    return own | ({"memory/cuda_peak": float(peak_gpu_bytes())} if torch.cuda.is_available() else {})


def peak_gpu_bytes() -> int:
    """The most memory that torch's allocator has held on the GPU so far; 0 without one."""
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
