"""The language-model loss of texts: what tuning towards a reward costs the model elsewhere."""

from collections.abc import Sequence
from statistics import fmean

from data.texts import Piece
from onebase.episodes import Episodes
from onebase.roles import Roles
from onebase.scoring import logprobs


def as_episodes(pieces: Sequence[Piece], roles: Roles) -> Episodes:
    """What is given as prompts, and what is predicted as responses."""
    given, predicted = zip(*pieces, strict=True)
    return Episodes.of(given, predicted, pad_id=roles.base.pad_id)


def lm_loss(roles: Roles, role: str | None, texts: Episodes, *, tokens_per_microbatch: int) -> float:
    """The role's mean loss a predicted token, in nats, without gradients (None: the bare base)."""
    return fmean(piece_losses(roles, role, texts, tokens_per_microbatch=tokens_per_microbatch))


def piece_losses(roles: Roles, role: str | None, texts: Episodes, *, tokens_per_microbatch: int) -> list[float]:
    """What each of B texts brings: its summed loss over the mean number of tokens of a text, so that their mean is
    `lm_loss`."""
    found = logprobs(roles, role, texts, temperature=1.0, tokens_per_microbatch=tokens_per_microbatch)
    return (-found.double().sum(dim=1) * len(texts) / texts.mask.sum()).tolist()
