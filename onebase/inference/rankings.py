"""Scores of several responses to one prompt, at the cost of one prompt: `onebase.sequences.tree` on whole rankings."""

from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from onebase.inference.scoring import last_token_scores
from onebase.model.roles import Roles
from onebase.sequences.packing import microbatches
from onebase.sequences.tree import fill, pack_size


@dataclass(frozen=True)
class Candidates:
    """One prompt and K responses, as token ids."""

    prompt: tuple[int, ...]
    responses: tuple[tuple[int, ...], ...]

    @property
    def sequences(self) -> list[tuple[int, ...]]:
        """Prompt and response joined, for each response."""
        return [self.prompt + response for response in self.responses]

    @property
    def separate_length(self) -> int:
        """Tokens of the K rows, padding included."""
        return len(self.responses) * max(map(len, self.sequences))


def candidate_scores(roles: Roles, role: str, groups: Sequence[Candidates]) -> list[Float[Tensor, " K"]]:
    """The role's score of each response, for each ranking, in one forward; with gradients where they are enabled."""
    scores = last_token_scores(roles, role, [ids for group in groups for ids in group.sequences])
    return list(scores.split([len(group.responses) for group in groups]))


def batches_of_rankings(roles: Roles, groups: Sequence[Candidates], *, tokens: int) -> list[list[int]]:
    """Micro-batches of whole rankings by token budget, largest first. Every index occurs once."""
    if roles.forwards.can_pack:
        return fill([pack_size(group.sequences) for group in groups], tokens=tokens)
    return microbatches([group.separate_length for group in groups], tokens=tokens)
