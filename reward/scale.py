"""The scale of the scores: what a unit of reward is."""

from collections.abc import Sequence

from data.chat.conversations import EncodedRanking
from onebase.errors import InputError
from onebase.inference.scoring import score
from onebase.model.roles import Roles
from reward.recipe import RewardRecipe


def rescale(roles: Roles, rankings: Sequence[EncodedRanking], recipe: RewardRecipe) -> float:
    """With scale: unit divide the head (weight and shift) by the standard deviation of the scores of these held-out
    responses; returns the divisor, 1 without.

    Ziegler et al. 2019, https://arxiv.org/abs/1909.08593, section 2, normalise their reward to variance 1, so that a
    KL weight means the same for every reward model. The mean stays that of `center`. Ranking by score is not changed;
    differences of scores are no log-odds any more, so what is read as such multiplies them by the divisor again.
    """
    if recipe.scale == "none":
        return 1.0
    sequences = [sequence for one in rankings for sequence in one.sequences]
    deviation = score(roles, "reward", sequences, tokens_per_microbatch=recipe.train.tokens_per_microbatch).std(
        correction=0
    )
    if not deviation > 0:
        raise InputError(
            f"scale: unit: the standard deviation of the scores of {len(sequences)} held-out responses is "
            f"{float(deviation)}, so they cannot be brought to 1. The model tells nothing apart: look at its loss, or "
            "go on with scale=none."
        )
    for parameter in roles.heads["reward"].parameters():
        parameter.data.div_(deviation.to(parameter.device))
    return float(deviation)
