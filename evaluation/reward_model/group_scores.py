"""Scores of the responses of many prompts, by one reward model or by several at once."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from onebase.inference.ensemble import Ensemble, spread_of
from onebase.inference.scoring import batches_of_rankings, candidate_scores
from onebase.model.roles import Roles
from onebase.sequences.episodes import Candidates
from onebase.tracking.progress import track

SINGLE = Ensemble()
"""One reward model, under its own role."""


@dataclass(frozen=True, kw_only=True)
class GroupScores:
    """What is said of one prompt's responses; lists have an entry a response."""

    scores: list[float]
    """The combined score."""
    members: dict[str, list[float]]
    """Each member's own, by role."""
    spread: list[float]


ScoresOf = Callable[[Sequence[Candidates], str], list[GroupScores]]
"""(prompts with their responses, what they are) -> their scores, in the given order."""


def score_groups(
    roles: Roles,
    groups: Sequence[Candidates],
    *,
    tokens_per_microbatch: int,
    description: str,
    ensemble: Ensemble = SINGLE,
) -> list[GroupScores]:
    """The score of every response of every prompt, in micro-batches by token budget, in the given order."""
    scores: dict[int, GroupScores] = {}
    batches = batches_of_rankings(roles, groups, tokens=tokens_per_microbatch)
    for rows in track(batches, total=len(batches), description=f"scoring {description}"):
        chosen = [groups[row] for row in rows]
        with torch.no_grad():
            said = {name: candidate_scores(roles, name, chosen) for name in ensemble.members}
        for place, row in enumerate(rows):
            own = torch.stack([said[name][place] for name in ensemble.members])
            scores[row] = GroupScores(
                scores=ensemble.combine(own).tolist(),
                members={name: one.tolist() for name, one in zip(ensemble.members, own, strict=True)},
                spread=spread_of(own).tolist(),
            )
    return [scores[row] for row in range(len(groups))]
