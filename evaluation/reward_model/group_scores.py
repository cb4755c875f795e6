"""Scores of the responses of many prompts, by one reward model or by several at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from onebase.inference.scoring import Ensemble, batches_of_rankings, candidate_scores, spread_of
from onebase.model.roles import Roles
from onebase.sequences.episodes import TokenIds
from onebase.tracking.progress import track


@dataclass(frozen=True, kw_only=True)
class GroupScores:
    """Scores of one prompt's responses; lists have an entry per response."""

    scores: list[float]
    """The combined score."""
    members: dict[str, list[float]]
    """Each member's own, by role."""
    spread: list[float]


ScoresOf = Callable[..., list[GroupScores]]
"""`score_groups` of one reward model: (prompts with their responses, description=what they are) -> their scores."""


def score_groups(
    roles: Roles,
    candidates: Sequence[Sequence[TokenIds]],
    *,
    tokens_per_microbatch: int,
    description: str,
    ensemble: Ensemble,
) -> list[GroupScores]:
    """The score of every response of every prompt, in micro-batches by token budget, in the given order."""
    groups: dict[int, GroupScores] = {}
    batches = batches_of_rankings(roles, candidates, tokens=tokens_per_microbatch)
    for rows in track(batches, total=len(batches), description=f"scoring {description}"):
        chosen = [candidates[row] for row in rows]
        with torch.no_grad():
            by_member = {name: candidate_scores(roles, name, chosen) for name in ensemble.members}
        for place, row in enumerate(rows):
            stacked = torch.stack([scores[place] for scores in by_member.values()])
            groups[row] = GroupScores(
                scores=ensemble.combine(stacked).tolist(),
                members=dict(zip(by_member, stacked.tolist(), strict=True)),
                spread=spread_of(stacked).tolist(),
            )
    return [groups[row] for row in range(len(candidates))]
