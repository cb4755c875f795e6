"""The language-model loss of texts: what tuning towards a reward costs the model elsewhere."""

from collections.abc import Sequence
from statistics import fmean

from data.select.texts import Piece
from onebase.inference.scoring import logprobs
from onebase.model.roles import Roles
from onebase.sequences.episodes import Episodes


def as_episodes(pieces: Sequence[Piece], roles: Roles) -> Episodes:
    """Contexts as prompts, predicted tokens as responses."""
    contexts, predicted = zip(*pieces, strict=True)
    return Episodes.of(contexts, predicted, pad_id=roles.base.pad_id)


def lm_loss(roles: Roles, role: str | None, texts: Episodes, *, tokens_per_microbatch: int) -> float:
    """The role's mean loss per predicted token, in nats, without gradients (None: the bare base)."""
    losses = piece_losses(roles, role, texts, tokens_per_microbatch=tokens_per_microbatch)
    tokens = sum(piece_tokens(texts))
    return fmean(loss * len(texts) / tokens for loss in losses)


def piece_losses(roles: Roles, role: str | None, texts: Episodes, *, tokens_per_microbatch: int) -> list[float]:
    """The loss of each of B texts, in nats, summed over its predicted tokens."""
    scores = logprobs(roles, role, texts, temperature=1.0, tokens_per_microbatch=tokens_per_microbatch)
    return (-scores.double().sum(dim=1)).tolist()


def piece_tokens(texts: Episodes) -> list[int]:
    """How many tokens of each text are predicted: the divisor of its sum of losses."""
    return texts.mask.sum(dim=1).tolist()
