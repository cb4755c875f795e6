"""Finished reward stages, loaded: every file verified, on the base and with the tokens they were trained with."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import BaseModel, PositiveInt, ValidationError

from data.chat.conversations import Chat
from data.select.labelers import LabelersSection
from data.select.sources import Source
from evaluation.reward_model.verdict import warn
from onebase.errors import RecordError
from onebase.inference.scoring import FIRST, CombineSection, Ensemble
from onebase.inference.soundness import require_sound
from onebase.model import base as bases
from onebase.model.roles import Roles
from onebase.recipe.sections import BaseSection, ChatSection, LimitsSection
from onebase.run import record, stages
from onebase.run.record import FinishedStage


class _RecordedTraining(BaseModel):
    shared_prompt: str
    tokens_per_microbatch: PositiveInt


class _RecordedEvaluation(BaseModel):
    rankings: list[Source]
    demonstrations: list[Source]


class RecordedRecipe(BaseModel):
    """What the recipe of a finished reward stage must hold to be measured again. Other keys are not read."""

    base: BaseSection
    chat: ChatSection
    data: list[Source]
    limits: LimitsSection
    labelers: LabelersSection = LabelersSection()
    evaluation: _RecordedEvaluation
    train: _RecordedTraining
    seed: int


def recipe_of(stage: FinishedStage) -> RecordedRecipe:
    """RecordError if the recorded recipe lacks a key or has a wrong value."""
    try:
        return RecordedRecipe.model_validate(stage.record.recipe)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("recipe", *first["loc"])))
        raise RecordError(f"{stage.folder / record.FILE}: {key}: {first['msg']}. It was edited.") from None


@dataclass(frozen=True, kw_only=True)
class RewardModel:
    """One finished reward stage, or several as an ensemble."""

    members: dict[str, FinishedStage]
    """By role, in the order given. The recipe of the first says on what and how they are measured."""
    ensemble: Ensemble
    roles: Roles
    chat: Chat
    tokens_per_microbatch: int

    @property
    def first(self) -> FinishedStage:
        return self.members[FIRST]

    @property
    def log_odds(self) -> float:
        """Of a unit of score: what the head was divided by after training, the mean over the members."""
        return statistics.fmean(stage.record.metrics.get("reward/scale", 1.0) for stage in self.members.values())


def load(folders: Sequence[Path], combine: CombineSection | None = None) -> RewardModel:
    """RecordError if a folder is damaged or holds another stage, or if its base has changed. Several stages must share
    one base and its tokens."""
    members = read(folders)
    for stage in members.values():
        warn(stage, "Its scores say little more.")
    return load_weights(members, combine)


def read(folders: Sequence[Path]) -> dict[str, FinishedStage]:
    """The stages' records, verified, by role. Weights take seconds and are not read."""
    first = recipe_of(record.read(folders[0], stage="reward"))
    identity = stages.identify(first.base, first.chat)
    members = stages.read_members(folders, lambda folder: stages.read_parent(folder, "reward", identity))
    for stage in members.values():
        recipe_of(stage)  # refuses an edited one before weights are read
    return members


def load_weights(members: dict[str, FinishedStage], combine: CombineSection | None = None) -> RewardModel:
    """The stages that `read` returned, on one base."""
    recipe = recipe_of(members[FIRST])
    base = bases.load(recipe.base, recipe.chat)
    roles = Roles(base)
    require_sound(roles)
    stages.load_members(roles, members).train()
    if recipe.train.shared_prompt == "off":
        roles.forwards.can_pack = False
    return RewardModel(
        members=members,
        ensemble=Ensemble(members=tuple(members), combine=(combine or CombineSection()).combination),
        roles=roles,
        chat=Chat.of(base, recipe.chat),
        tokens_per_microbatch=recipe.train.tokens_per_microbatch,
    )
