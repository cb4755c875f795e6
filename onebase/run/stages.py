"""What every stage does at its start and end: verify its parents, load what it needs, write its record.

A stage validates parents, data and limits before it loads a weight and before it creates its folder. A typo costs
seconds and leaves nothing behind.
"""

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from onebase.custom.function_source import source_sha256
from onebase.errors import InputError
from onebase.files.writing import atomic_folder, move_aside, sync
from onebase.memory import Budget
from onebase.model import base as bases
from onebase.model.base import Base
from onebase.model.identity import BaseIdentity, TokenizerIdentity
from onebase.model.roles import Roles
from onebase.recipe.sections import BaseSection, ChatSection, CheckpointSection, TrackSection
from onebase.run import record, same_chat
from onebase.run.identity import RunIdentity
from onebase.run.record import DataIdentity, FinishedStage, Resources, StageRecord
from onebase.run.same_chat import ChatTexts
from onebase.run.session import Session
from onebase.run.stage_files import quoted_files
from onebase.tracking.dashboard import artifact_name, version_of
from onebase.tracking.usage import Stopwatch


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
    def model_dump(self, *, mode: str) -> dict[str, Any]: ...


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
    parents: Mapping[str, FinishedStage],
    data: Iterable[DataIdentity],
    *,
    functions: Iterable[str] = (),
) -> RunIdentity:
    """What a run goes by. functions: that the recipe names, as `package.module:name`."""
    return RunIdentity(
        base=identity.base,
        tokenizer=identity.tokenizer,
        parents={name: parent.sha256 for name, parent in parents.items()},
        data=list(data),
        functions={name: source_sha256(name) for name in sorted(set(functions))},
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


def read_parent(folder: Path, stage: str | None, identity: Identity) -> FinishedStage:
    """A finished stage (None: any) that was trained on this very base with these very tokens; RecordError otherwise."""
    parent = record.read(folder, stage=stage)
    record.require_same_base(parent, identity.base)
    same_chat.require(parent, identity.tokenizer, lambda: identity.texts)
    return parent


def open_session(
    recipe: StageRecipe,
    stage: str,
    *,
    parents: Mapping[str, FinishedStage],
    data: Iterable[DataIdentity],
    state_bytes: int,
    identity: RunIdentity | None = None,
    budget: Budget | None = None,
) -> Session:
    """Creates the stage's folder, or resumes in it: from here on there is something to lose.

    state_bytes: of a checkpoint, as `onebase.run.learning.state_bytes` estimates it. identity: what the run goes by,
    where the base is loaded already; else it is computed from the recipe, parents and data.
    """
    if identity is None:
        identity = run_identity(identify(recipe), parents, data)
    return Session(
        recipe.out,
        stage,
        track=recipe.track,
        checkpoint=recipe.checkpoint,
        recipe=recipe.model_dump(mode="json"),
        state_bytes=state_bytes,
        identity=identity,
        budget=budget,
    )


def save_stage(
    folder: Path,
    *,
    stage: str,
    recipe: StageRecipe,
    base: Base,
    roles: Roles,
    role: str,
    parents: Mapping[str, FinishedStage],
    data: Iterable[DataIdentity],
    metrics: Mapping[str, float],
    watch: Stopwatch,
    identity: RunIdentity | None,
) -> StageRecord:
    """Save the role as `adapter/`, and `tokenizer/`, each whole or not at all. Returns the record of the stage in
    `folder`, which is not written yet: all files that it lists are on the disk."""
    targets = [folder / name for name in ("adapter", "tokenizer")]
    with atomic_folder(targets[0]) as adapter, atomic_folder(targets[1]) as tokenizer:
        roles.save(role, adapter)
        base.tokenizer.save_pretrained(tokenizer)
        for target in targets:
            if os.path.lexists(target):  # not of this run
                move_aside(target)
    files = [path for target in targets for path in sorted(target.rglob("*")) if path.is_file()]
    # Nothing is written to these from here on: what follows only tells the dashboard.
    quoted = quoted_files(folder)
    for path in [*quoted, *{path.parent for path in quoted}]:
        sync(path)
    return record.create(
        stage=stage,
        folder=folder,
        base=base.identity,
        tokenizer=base.tokenizer_identity,
        files=[*files, *quoted],
        parents=parents,
        recipe=recipe.model_dump(mode="json"),
        data=data,
        metrics=metrics,
        resources=Resources.model_validate(watch.usage()),
        parts=[] if identity is None else identity.parts,
    )


def finish(
    *,
    stage: str,
    recipe: StageRecipe,
    base: Base,
    roles: Roles,
    role: str,
    parents: Mapping[str, FinishedStage],
    data: Iterable[DataIdentity],
    metrics: Mapping[str, float],
    watch: Stopwatch,
    session: Session,
) -> StageRecord:
    """Save the role and the tokenizer, tell the dashboard, and write the record last."""
    session.tracker.sync()
    finished = save_stage(
        recipe.out,
        stage=stage,
        recipe=recipe,
        base=base,
        roles=roles,
        role=role,
        parents=parents,
        data=data,
        metrics=metrics,
        watch=watch,
        identity=session.identity,
    )
    session.tracker.summarise(metrics)
    session.tracker.artifact(
        recipe.out / "adapter",
        version=version_of(record.sha256_of(finished)),
        parents={name: _artifact_of(parent) for name, parent in parents.items()},
        details={"stage": stage, "base": base.identity.model},
    )
    record.write(recipe.out, finished)
    return finished


def _artifact_of(parent: FinishedStage) -> str:
    """A parent's adapter, as its own run has told W&B of it."""
    track = parent.record.recipe.get("track")
    group = track.get("group") if isinstance(track, dict) else None
    group = group if isinstance(group, str) else None
    return f"{artifact_name(parent.folder, parent.record.stage, group)}:{version_of(parent.sha256)}"
