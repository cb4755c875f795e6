"""Zero and unit of the scores."""

from collections.abc import Sequence

from data.chat.conversations import EncodedDemonstration, EncodedRanking
from onebase.errors import InputError
from onebase.inference.scoring import score
from onebase.model.roles import Roles


def center(roles: Roles, demonstrations: Sequence[EncodedDemonstration], *, tokens_per_microbatch: int) -> float:
    """Set the head's bias to make these held-out demonstrations score 0 on average; returns the shift.

    InstructGPT, https://arxiv.org/abs/2203.02155, section 3.5: the loss does not see a constant, PPO does.
    """
    sequences = [tuple(demonstration.input_ids) for demonstration in demonstrations]
    mean = score(roles, "reward", sequences, tokens_per_microbatch=tokens_per_microbatch).mean()
    roles.heads["reward"].bias.data.sub_(mean.to(roles.base.device))
    return -float(mean)


def rescale(roles: Roles, rankings: Sequence[EncodedRanking], *, tokens_per_microbatch: int) -> float:
    """Divide the head (weight and shift) by the standard deviation of the scores of these held-out responses; returns
    the divisor.

    Ziegler et al. 2019, https://arxiv.org/abs/1909.08593, section 2, normalise their reward to variance 1: a KL weight
    then means the same for every reward model. The mean stays that of `center`. The order by score does not change.
    Differences of scores are log-odds only after they are multiplied by the divisor again.
    """
    sequences = [sequence for ranking in rankings for sequence in ranking.sequences]
    scores = score(roles, "reward", sequences, tokens_per_microbatch=tokens_per_microbatch)
    deviation = scores.std(correction=0)
    if not deviation > 0:
        raise InputError(
            f"scale: unit: the standard deviation of the scores of {len(sequences)} held-out responses is "
            f"{float(deviation)}, so they cannot be brought to 1. The model tells nothing apart: look at its loss, or "
            "continue with scale=none."
        )
    for parameter in roles.heads["reward"].parameters():
        parameter.data.div_(deviation.to(parameter.device))
    return float(deviation)
