"""The report of a reward model: it scores held-out rankings, demonstrations and the rankings of held-out labelers."""

from collections.abc import Sequence
from functools import partial
from typing import Any

from data.chat.conversations import Chat, EncodedDemonstration, EncodedRanking, Limiter, encode_rankings
from data.records import Ranking, conversation_of
from data.select.labelers import LabelersSection
from data.select.mixing import UNNAMED, task_of
from evaluation.reward_model import baselines
from evaluation.reward_model.group_scores import ScoresOf, score_groups
from evaluation.reward_model.labelers import held_out_labelers
from evaluation.reward_model.orders import ScoredDemonstration
from evaluation.reward_model.pairs import ScoredRanking
from evaluation.reward_model.report import build
from evaluation.reward_model.verdict import verdict_of
from onebase.inference.scoring import Ensemble
from onebase.model.roles import Roles


def reward_report(
    roles: Roles,
    rankings: Sequence[EncodedRanking],
    demonstrations: Sequence[EncodedDemonstration],
    training: Sequence[Ranking],
    *,
    tokens_per_microbatch: int,
    seed: int,
    ensemble: Ensemble,
    log_odds: float,
    labelers: LabelersSection,
    left_out: Sequence[EncodedRanking],
) -> tuple[list[ScoredRanking], dict[str, Any]]:
    """The roles of an ensemble score everything; the scored rankings and the report.

    training: what the model was trained on; the bag-of-words baseline learns from it too. log_odds: see build.
    left_out: rankings of held-out labelers, which were not trained on.
    """
    scores_of = partial(score_groups, roles, tokens_per_microbatch=tokens_per_microbatch, ensemble=ensemble)
    scored = score_rankings(rankings, scores_of)
    of_labelers = held_out_labelers(
        [*scored, *score_rankings(left_out, scores_of)],
        labelers,
        trained_prompts={conversation_of(ranking.prompt) for ranking in training},
        seed=seed,
    )
    simple = {
        "longer wins": baselines.longer_wins(scored),
        "shorter wins": baselines.shorter_wins(scored),
        "random": baselines.random_scores(scored, seed=seed),
        "bag of words": baselines.bag_of_words(training, scored) if training else "there are no training rankings",
    }
    report = build(
        scored,
        score_demonstrations(demonstrations, rankings, scores_of),
        baselines=simple,
        seed=seed,
        log_odds=log_odds,
    )
    return scored, report | {"held_out_labelers": of_labelers, "verdict": verdict_of(report).as_dict()}


def encode_left_out(chat: Chat, rankings: Sequence[Ranking], limiter: Limiter) -> list[EncodedRanking]:
    """Rankings of held-out labelers; empty unless the recipe holds labelers out."""
    return encode_rankings(chat, rankings, limiter) if rankings else []


def score_rankings(rankings: Sequence[EncodedRanking], scores_of: ScoresOf) -> list[ScoredRanking]:
    scores = scores_of([encoded.sequences for encoded in rankings], description="held-out rankings")
    return [
        ScoredRanking(
            prompt=encoded.ranking.prompt.user_text,
            conversation=conversation_of(encoded.ranking.prompt),
            responses=encoded.ranking.responses,
            tiers=encoded.ranking.tiers,
            scores=tuple(group.scores),
            members={name: tuple(values) for name, values in group.members.items()},
            lengths=tuple(map(len, encoded.responses_ids)),
            labels=encoded.ranking.labels,
            source=encoded.ranking.prompt.origin.source,
            task=task_named_by(encoded.ranking),
            labeler=encoded.ranking.labeler,
        )
        for encoded, group in zip(rankings, scores, strict=True)
    ]


def task_named_by(ranking: Ranking) -> str | None:
    """A built-in prompt names its family and, by number, its template: the family is the task."""
    task = str(ranking.prompt.meta.get("family") or task_of(ranking))
    return None if task == UNNAMED else task


def score_demonstrations(
    demonstrations: Sequence[EncodedDemonstration], rankings: Sequence[EncodedRanking], scores_of: ScoresOf
) -> list[ScoredDemonstration]:
    """rankings: a demonstration is compared with the ranking of the same prompt, if there is one."""
    groups = [[shown.prompt_ids + shown.response_ids] for shown in demonstrations]
    scores = scores_of(groups, description="demonstrations")
    ranking_of = {encoded.prompt_ids: index for index, encoded in enumerate(rankings)}
    return [
        ScoredDemonstration(ranking=ranking_of.get(shown.prompt_ids), score=group.scores[0])
        for shown, group in zip(demonstrations, scores, strict=True)
    ]
