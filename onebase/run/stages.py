"""What every stage does at its start and end: verify its parents, load what it needs, write its record.

A stage validates parents, data and limits before it loads a weight and before it creates its folder. A typo costs
seconds and leaves nothing behind.
"""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from onebase.custom.function_source import source_sha256
from onebase.errors import InputError, RecordError
from onebase.files.writing import atomic_folder, move_aside, sync
from onebase.inference.scoring import member_names
from onebase.memory import Budget
from onebase.model import base as bases
from onebase.model.base import Base
from onebase.model.identity import BaseIdentity, TokenizerIdentity
from onebase.model.roles import Roles
from onebase.recipe.sections import BaseSection, ChatSection, StageRecipe
from onebase.run import record, same_chat
from onebase.run.identity import RunIdentity, triples
from onebase.run.record import DataIdentity, FinishedStage, Resources, StageRecord
from onebase.run.same_chat import ChatTexts
from onebase.run.session import Session
from onebase.run.stage_files import quoted_files
from onebase.tracking.dashboard import artifact_name, version_of
from onebase.tracking.usage import Stopwatch

R = TypeVar("R", bound=StageRecipe)


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Base and tokenizer of a run, known before a weight is loaded."""

    base: BaseIdentity
    tokenizer: TokenizerIdentity
    texts: Callable[[], ChatTexts]


@dataclass(frozen=True, kw_only=True)
class Origin(Generic[R]):
    """What a record says of where its adapter came from."""

    stage: str
    recipe: R
    base: Base
    parents: Mapping[str, FinishedStage] = field(default_factory=dict[str, FinishedStage])
    data: Sequence[DataIdentity] = ()
    functions: Iterable[str] = ()
    """Those that the recipe names, as `package.module:name`."""
    watch: Stopwatch = field(default_factory=Stopwatch)

    @cached_property
    def identity(self) -> RunIdentity:
        """What the run goes by, with the base that was loaded."""
        base = self.base
        return run_identity(base.identity, base.tokenizer_identity, self.parents, self.data, functions=self.functions)


def run_identity(
    base: BaseIdentity,
    tokenizer: TokenizerIdentity,
    parents: Mapping[str, FinishedStage],
    data: Iterable[DataIdentity],
    *,
    functions: Iterable[str] = (),
) -> RunIdentity:
    """What a run goes by. functions: that the recipe names, as `package.module:name`."""
    return RunIdentity(
        base=base,
        tokenizer=tokenizer,
        parents={name: parent.sha256 for name, parent in parents.items()},
        data=triples(data),
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


def identify(base: BaseSection, chat: ChatSection) -> Identity:
    model, tokenizer = bases.identify(base, chat)
    return Identity(base=model, tokenizer=tokenizer, texts=partial(ChatTexts.of_recipe, base, chat))


def read_parent(folder: Path, stage: str | None, identity: Identity) -> FinishedStage:
    """A finished stage (None: any) that was trained on this very base with these very tokens; RecordError otherwise."""
    parent = record.read(folder, stage=stage)
    record.require_same_base(parent, identity.base)
    same_chat.require(parent, identity.tokenizer, identity.texts)
    return parent


def read_members(folders: Sequence[Path], read: Callable[[Path], FinishedStage]) -> dict[str, FinishedStage]:
    """The finished reward stages by role, each read and verified by `read`; RecordError when one is given twice."""
    members: dict[str, FinishedStage] = {}
    for name, folder in zip(member_names(len(folders)), folders, strict=True):
        member = read(folder)
        twin = next((other for other in members.values() if other.sha256 == member.sha256), None)
        if twin is not None:
            raise RecordError(
                f"parents.reward: {folder} is the stage that {twin.folder} is, and copies always agree. "
                "Train another one (with another seed), or remove it."
            )
        members[name] = member
    return members


def load_members(roles: Roles, members: Mapping[str, FinishedStage]) -> Roles:
    """An adapter and a head for each member, on the base that is there."""
    for name, member in members.items():
        roles.load(name, member.adapter)
    return roles


def open_session(origin: Origin[Any], *, state_bytes: int, budget: Budget | None = None) -> Session:
    """Creates the stage's folder, or resumes in it: from here on there is something to lose.

    state_bytes: of a checkpoint, as `onebase.run.learning.state_bytes` estimates it.
    """
    recipe = origin.recipe
    return Session(
        recipe.out,
        origin.stage,
        track=recipe.track,
        checkpoint=recipe.checkpoint,
        recipe=recipe.model_dump(mode="json"),
        state_bytes=state_bytes,
        identity=origin.identity,
        budget=budget,
    )


def save_stage(folder: Path, origin: Origin[Any], roles: Roles, role: str, metrics: Mapping[str, float]) -> StageRecord:
    """Save the role as `adapter/`, and `tokenizer/`, each whole or not at all. Returns the record of the stage in
    `folder`, which is not written yet: all files that it lists are on the disk."""
    targets = [folder / name for name in ("adapter", "tokenizer")]
    with atomic_folder(targets[0]) as adapter, atomic_folder(targets[1]) as tokenizer:
        roles.save(role, adapter)
        origin.base.tokenizer.save_pretrained(tokenizer)
        for target in targets:
            if os.path.lexists(target):  # not of this run
                move_aside(target)
    files = [path for target in targets for path in sorted(target.rglob("*")) if path.is_file()]
    # Nothing is written to these from here on: what follows only tells the dashboard.
    quoted = quoted_files(folder)
    for path in [*quoted, *{path.parent for path in quoted}]:
        sync(path)
    return record.create(
        stage=origin.stage,
        folder=folder,
        base=origin.base.identity,
        tokenizer=origin.base.tokenizer_identity,
        files=[*files, *quoted],
        parents=origin.parents,
        recipe=origin.recipe.model_dump(mode="json"),
        data=origin.data,
        metrics=metrics,
        resources=Resources.model_validate(origin.watch.usage()),
        parts=origin.identity.parts,
    )


def finish(origin: Origin[Any], roles: Roles, role: str, metrics: Mapping[str, float], session: Session) -> StageRecord:
    """Save the role and the tokenizer, tell the dashboard, and write the record last."""
    session.tracker.sync()
    folder = origin.recipe.out
    finished = save_stage(folder, origin, roles, role, metrics)
    session.tracker.summarise(metrics)
    session.tracker.artifact(
        folder / "adapter",
        version=version_of(record.sha256_of(finished)),
        parents={name: _artifact_of(parent) for name, parent in origin.parents.items()},
        details={"stage": origin.stage, "base": origin.base.identity.model},
    )
    record.write(folder, finished)
    return finished


def _artifact_of(parent: FinishedStage) -> str:
    """A parent's adapter, as its own run has told W&B of it."""
    track = parent.record.recipe.get("track")
    group = track.get("group") if isinstance(track, dict) else None
    name = artifact_name(parent.folder, parent.record.stage, group if isinstance(group, str) else None)
    return f"{name}:{version_of(parent.sha256)}"
