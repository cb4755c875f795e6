"""`onebase eval reward`: a finished reward stage scores held-out rankings, and the report says whether to trust it.

The reward stage itself ends with the same `measure`, so its own report.json is what this command would write.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, PositiveInt, ValidationError

from data.chat.conversations import (
    Chat,
    EncodedDemonstration,
    EncodedRanking,
    Limiter,
    encode_demonstrations,
    encode_rankings,
)
from data.records import Demonstration, Ranking, conversation_of
from data.select.labelers import LabelersSection, RankingSplit, divide, labeler_of
from data.select.mixing import UNNAMED, task_of
from data.select.sources import Source
from data.select.sources import load as load_records
from evaluation.reward_model import baselines
from evaluation.reward_model.group_scores import SINGLE, GroupScores, ScoresOf, score_groups
from evaluation.reward_model.labelers import LeftOut
from evaluation.reward_model.pairs import ScoredRanking
from evaluation.reward_model.report import ScoredDemonstration, build
from evaluation.reward_model.verdict import verdict_of, warn
from onebase.errors import DataError, InputError, RecordError
from onebase.files.writing import canonical, replace_file
from onebase.inference.ensemble import FIRST, CombineSection, Ensemble
from onebase.inference.soundness import require_sound
from onebase.model import base as bases
from onebase.model.roles import Roles
from onebase.recipe.sections import BaseSection, ChatSection, LimitsSection
from onebase.run import record, same_chat, stages
from onebase.run.folders import require_replaceable, require_writable
from onebase.run.members import load_members, read_members
from onebase.run.record import FinishedStage
from onebase.sequences.episodes import Candidates
from onebase.terminal import say

EVERYBODY = LabelersSection()
"""Nobody is held out."""


class _RecordedTraining(BaseModel):
    shared_prompt: str
    tokens_per_microbatch: PositiveInt


class _RecordedEvaluation(BaseModel):
    rankings: list[Source]
    demonstrations: list[Source]


class RecordedRecipe(BaseModel):
    """What a finished reward stage's recipe must say to be measured again; whatever else it says is not read."""

    base: BaseSection
    chat: ChatSection
    data: list[Source]
    limits: LimitsSection
    labelers: LabelersSection = EVERYBODY
    evaluation: _RecordedEvaluation
    train: _RecordedTraining
    seed: int


@dataclass(frozen=True, kw_only=True)
class RewardModel:
    """A finished reward stage, or several, loaded: every file verified, on the base and with the tokens they were
    trained with."""

    members: dict[str, FinishedStage]
    """By role, in the order given; the first one's recipe says on what and how they are measured."""
    ensemble: Ensemble
    roles: Roles
    chat: Chat
    tokens_per_microbatch: int
    """Whether several responses may share one row with their prompt."""

    @property
    def found(self) -> FinishedStage:
        return self.members[FIRST]

    @property
    def log_odds(self) -> float:
        """Of a unit of score: what the head was divided by after training, the mean over the members."""
        return statistics.fmean(one.record.metrics.get("reward/scale", 1.0) for one in self.members.values())


def load(folders: Sequence[Path], combine: CombineSection | None = None) -> RewardModel:
    """RecordError when a stage is not a reward stage, is damaged, or its base is not what it was; or, for several,
    when they are not on one base with the same tokens."""
    members = read(folders)
    for found in members.values():
        warn(found, "Its scores say little more.")
    return load_weights(members, combine)


def read(folders: Sequence[Path]) -> dict[str, FinishedStage]:
    """The stages' records, verified, by role; their weights take seconds, and are not read."""
    identity: list[stages.Identity] = []

    def one(folder: Path) -> FinishedStage:
        found = record.read(folder, stage="reward")
        require_recipe(found)
        if not identity:
            recipe = found.record.recipe
            given = BaseSection.model_validate(recipe["base"]), ChatSection.model_validate(recipe["chat"])
            identity.append(stages.identity_of(*given))
        record.require_same_base(found, identity[0].base)
        same_chat.require(found, identity[0].tokenizer, lambda: identity[0].texts)
        return found

    return read_members(folders, one)


def require_recipe(found: FinishedStage) -> None:
    """RecordError unless the record's recipe says all that is read of it here."""
    try:
        RecordedRecipe.model_validate(found.record.recipe)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, ("recipe", *first["loc"])))
        raise RecordError(f"{found.folder / record.FILE}: {key}: {first['msg']}. It was edited.") from None


def load_weights(members: dict[str, FinishedStage], combine: CombineSection | None = None) -> RewardModel:
    """What `read` has found, on one base."""
    recipe = members[FIRST].record.recipe
    section, chat = BaseSection.model_validate(recipe["base"]), ChatSection.model_validate(recipe["chat"])
    base = bases.load(section, chat)
    roles = load_members(require_sound(Roles(base)), members).train()
    if recipe["train"]["shared_prompt"] == "off":
        roles.forwards.can_pack = False
    return RewardModel(
        members=members,
        ensemble=Ensemble(members=tuple(members), combine=(combine or CombineSection()).combination),
        roles=roles,
        chat=Chat.of(base, chat),
        tokens_per_microbatch=recipe["train"]["tokens_per_microbatch"],
    )


def evaluate(
    folders: Sequence[Path], out: Path, *, rankings: Sequence[Source] = (), combine: CombineSection | None = None
) -> dict[str, Any]:
    """The report of a finished stage, or of several as an ensemble, as report.json and figures in `out`.

    rankings: in place of the (first) recipe's held-out ones. Of these, prompts that any member was trained on are left
    out, and of the recipe's own those that a further member was trained on: it would know the answers. DataError when
    none is left.
    """
    from evaluation.reward_model import plots

    require_outside(out, *folders)
    require_replaceable(out, "report.json", ("stage_sha256",), [f"{name}.svg" for name in plots.FIGURES])
    require_writable(out)
    members = read(folders)
    recipe = members[FIRST].record.recipe
    seed, limiter = recipe["seed"], Limiter(LimitsSection.model_validate(recipe["limits"]))
    held_out = load_records(rankings or sources(recipe["evaluation"]["rankings"]), Ranking, seed=seed)
    divided = {name: training_of(found.record.recipe) for name, found in members.items()}
    # The first one's own held-out rankings may be another person's of a prompt that it was trained on: its stage
    # reports them, and so does this.
    seen = [one.training for name, one in divided.items() if name != FIRST or rankings]
    fresh = untrained(held_out.records, seen)
    demonstrations = load_records(sources(recipe["evaluation"]["demonstrations"]), Demonstration, seed=seed)
    model = load_weights(members, combine)
    _, report = measure(
        model.roles,
        encode_rankings(model.chat, fresh, limiter),
        encode_demonstrations(model.chat, demonstrations.records, limiter),
        [one.ranking for one in encode_rankings(model.chat, divided[FIRST].training, Limiter(limiter.limits))],
        tokens_per_microbatch=model.tokens_per_microbatch,
        seed=seed,
        ensemble=model.ensemble,
        log_odds=model.log_odds,
        labelers=labelers_of(recipe),
        left_out=[] if rankings else encode_left_out(model.chat, divided[FIRST].held_out, limiter),
    )
    identities = [*held_out.identities, *limiter.settle("eval reward")]
    report |= {"data": [one.model_dump() for one in identities], "stage_sha256": model.found.sha256}
    trained = report["rankings_of_trained_prompts"] = len(held_out.records) - len(fresh)
    if trained:
        say(f"eval reward: rankings left out, for their prompts were trained on: {trained}.")
    if len(model.members) > 1:
        report["ensemble"]["stages_sha256"] = {name: found.sha256 for name, found in model.members.items()}
    out.mkdir(parents=True, exist_ok=True)
    replace_file(out / "report.json", canonical(report))
    plots.write(report, out)
    return report


def sources(given: Sequence[Any]) -> list[Source]:
    return [Source.model_validate(one) for one in given]


def labelers_of(recipe: Mapping[str, Any]) -> LabelersSection:
    return LabelersSection.model_validate(recipe.get("labelers", {}))


def training_of(recipe: Mapping[str, Any]) -> RankingSplit:
    """What a finished stage learned from, read again."""
    return divide(load_records(sources(recipe["data"]), Ranking, seed=recipe["seed"]).records, labelers_of(recipe))


def untrained(rankings: Sequence[Ranking], trained: Sequence[Sequence[Ranking]]) -> list[Ranking]:
    """Those of prompts that are in none of the training sets."""
    seen = {conversation_of(one.prompt) for part in trained for one in part}
    fresh = [one for one in rankings if conversation_of(one.prompt) not in seen]
    if rankings and not fresh:
        raise DataError(
            f"eval reward: all {len(rankings)} held-out rankings are of prompts that were trained on. Pass others with "
            "--data."
        )
    return fresh


def require_outside(out: Path | None, *folders: Path) -> None:
    """InputError when files would be written into a stage, whose content is verified. None: nothing is written."""
    for folder in folders:
        if out is None or not out.resolve().is_relative_to(folder.resolve()):
            continue
        raise InputError(f"--out {out}: lies in the stage folder {folder}, which is verified. Pass another folder.")


def measure(
    roles: Roles,
    rankings: Sequence[EncodedRanking],
    demonstrations: Sequence[EncodedDemonstration],
    training: Sequence[Ranking],
    *,
    tokens_per_microbatch: int,
    seed: int,
    ensemble: Ensemble = SINGLE,
    log_odds: float = 1.0,
    labelers: LabelersSection = EVERYBODY,
    left_out: Sequence[EncodedRanking] = (),
) -> tuple[list[ScoredRanking], dict[str, Any]]:
    """The role 'reward' (or an ensemble's roles) scores everything; the scored rankings and the report.

    training: what the bag-of-words baseline learns from, which the model was trained on as well. log_odds: see build.
    left_out: rankings of the labelers who were held out of the training data.
    """

    def scores_of(groups: Sequence[Candidates], description: str) -> list[GroupScores]:
        return score_groups(
            roles,
            groups,
            tokens_per_microbatch=tokens_per_microbatch,
            description=description,
            ensemble=ensemble,
        )

    scored = score_rankings(rankings, scores_of)
    shown = score_demonstrations(demonstrations, rankings, scores_of)
    others = LeftOut(
        section=labelers,
        rankings=score_rankings(left_out, scores_of),
        trained_prompts={conversation_of(one.prompt) for one in training},
    )
    simple = {
        "longer wins": baselines.longer_wins(scored),
        "shorter wins": baselines.shorter_wins(scored),
        "random": baselines.random_scores(scored, seed=seed),
        "bag of words": baselines.bag_of_words(training, scored) if training else "there are no training rankings",
    }
    report = build(scored, shown, baselines=simple, seed=seed, log_odds=log_odds, left_out=others)
    return scored, report | {"verdict": verdict_of(report).as_dict()}


def encode_left_out(chat: Chat, rankings: Sequence[Ranking], limiter: Limiter) -> list[EncodedRanking]:
    """Those of labelers who are held out; nobody is, unless the recipe says so."""
    return encode_rankings(chat, rankings, limiter) if rankings else []


def score_rankings(rankings: Sequence[EncodedRanking], scores_of: ScoresOf) -> list[ScoredRanking]:
    scores = scores_of([one.candidates for one in rankings], "held-out rankings")
    return [
        ScoredRanking(
            prompt=one.ranking.prompt.user_text,
            conversation=conversation_of(one.ranking.prompt),
            responses=one.ranking.responses,
            tiers=one.ranking.tiers,
            scores=tuple(own.scores),
            members={name: tuple(said) for name, said in own.members.items()},
            lengths=tuple(map(len, one.responses_ids)),
            labels=one.ranking.labels,
            source=one.ranking.prompt.origin.source,
            task=task_named_by(one.ranking),
            labeler=labeler_of(one.ranking),
        )
        for one, own in zip(rankings, scores, strict=True)
    ]


def task_named_by(ranking: Ranking) -> str | None:
    """A built-in prompt names its family and, by number, its template: the family is the task."""
    task = str(ranking.prompt.meta.get("family") or task_of(ranking))
    return None if task == UNNAMED else task


def score_demonstrations(
    demonstrations: Sequence[EncodedDemonstration], rankings: Sequence[EncodedRanking], scores_of: ScoresOf
) -> list[ScoredDemonstration]:
    """rankings: those whose prompts may be the demonstrations' as well."""
    groups = [Candidates(one.prompt_ids, (one.response_ids,)) for one in demonstrations]
    scores = scores_of(groups, "demonstrations")
    ranking_of = {one.prompt_ids: index for index, one in enumerate(rankings)}
    return [
        ScoredDemonstration(ranking=ranking_of.get(one.prompt_ids), score=own.scores[0])
        for one, own in zip(demonstrations, scores, strict=True)
    ]
