"""Losses on rankings: how well the scores of one prompt's responses fit their order.

Shapes: K = responses of one prompt. Tier 0 is the best; responses of one tier are tied. Every loss is the negative
log-likelihood of the ranking under a model of choice, averaged over its pairs or choices. A prompt with nine responses
therefore weighs as much as one with two. At K = 2 without a tie, margin or smoothing, Bradley-Terry
and Plackett-Luce are -log sigmoid(s_w - s_l); Rao-Kupper and Davidson are at theta = 1 and nu = 0.

`LOSSES` is the table a recipe chooses from.
"""

from collections.abc import Callable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import logsigmoid


def bradley_terry_loss(
    scores: Float[Tensor, " K"], tiers: Int[Tensor, " K"], *, margin: float = 0.0, label_smoothing: float = 0.0
) -> Float[Tensor, ""]:
    """Bradley-Terry over all pairs of one prompt's ranking, averaged over its pairs.

        loss = - 1/|P| * sum over (w, l) in P of log sigmoid(s_w - s_l),     P = {(w, l): tier_w < tier_l}

    Tier 0 is the best; responses in one tier are tied and give no pair; there must be two tiers at least (with one,
    0/0 is NaN). With K responses without ties |P| = C(K, 2).
    Ouyang et al. 2022 (InstructGPT), https://arxiv.org/abs/2203.02155, eq. 1.

    With a margin that grows with the gap of tiers, and with labels that may be wrong:

        z_wl = s_w - s_l - margin * (tier_l - tier_w)
        loss = - 1/|P| * sum over P of [(1 - label_smoothing) log sigmoid(z_wl) + label_smoothing log sigmoid(-z_wl)]

    margin: in units of score, for each tier between the two. Touvron et al. 2023 (Llama 2),
    https://arxiv.org/abs/2307.09288, eq. 2, ask for more where a response is "significantly better".

    label_smoothing: the probability that a labelled pair has the wrong order, below 1/2. The best difference is then
    not infinite but log((1 - label_smoothing) / label_smoothing). Mitchell 2023, A note on DPO with noisy preferences,
    https://ericmitchell.ai/cdpo.pdf.
    """
    better = tiers.unsqueeze(1) < tiers.unsqueeze(0)
    gaps = (tiers.unsqueeze(0) - tiers.unsqueeze(1))[better]
    differences = (scores.unsqueeze(1) - scores.unsqueeze(0))[better] - margin * gaps
    return -((1.0 - label_smoothing) * logsigmoid(differences) + label_smoothing * logsigmoid(-differences)).mean()


def plackett_luce_loss(scores: Float[Tensor, " K"], tiers: Int[Tensor, " K"]) -> Float[Tensor, ""]:
    """Plackett-Luce: the ranking is drawn best first, each time among the responses that are left.

        loss = - 1/|C| * sum over i in C of log( exp(s_i) / (exp(s_i) + sum over worse j of exp(s_j)) )
        C = {i: there is a j with tier_j > tier_i},     j is worse than i when tier_j > tier_i

    Without ties the sum is the negative log-likelihood of the whole order: |C| = K - 1 choices, and the last response
    is left over. Ties: responses of one tier do not compete with each other. Each is chosen against those below it, as
    if the others of its tier were not there; Luce's axiom allows that. A tie has no
    effect, as in `bradley_terry_loss`. There must be two tiers at least (with one, 0/0 is NaN).
    Plackett 1975, The analysis of permutations, https://doi.org/10.2307/2346567; Luce 1959, Individual choice
    behavior; as a ranking loss: Xia et al. 2008 (ListMLE), https://doi.org/10.1145/1390156.1390306.
    """
    worse = tiers.unsqueeze(1) < tiers.unsqueeze(0)
    left = worse | torch.eye(len(tiers), dtype=torch.bool, device=tiers.device)
    candidates = scores.unsqueeze(0).expand(len(scores), -1).masked_fill(~left, -torch.inf)
    losses = candidates.logsumexp(dim=1) - scores
    return losses[worse.any(dim=1)].mean()


def rao_kupper_loss(scores: Float[Tensor, " K"], tiers: Int[Tensor, " K"], *, theta: float) -> Float[Tensor, ""]:
    """Bradley-Terry with ties: two responses differ when their scores differ by more than a threshold.

        P(i before j) = sigmoid(s_i - s_j - log theta)
        P(i tied j)   = (theta^2 - 1) * sigmoid(s_i - s_j - log theta) * sigmoid(s_j - s_i - log theta)
        loss          = - 1/C(K, 2) * sum over all pairs of log P(what was said of the pair)

    theta >= 1; two equal scores are tied with probability (theta - 1) / (theta + 1). Ties pull their scores together.
    theta = 1 is Bradley-Terry, under which a tie is impossible: its loss is infinite.
    Rao and Kupper 1967, Ties in paired-comparison experiments, https://doi.org/10.1080/01621459.1967.10482901.
    """
    threshold = torch.tensor(theta, dtype=scores.dtype, device=scores.device)
    won, tied = _margins(scores, tiers)
    wins = logsigmoid(won - threshold.log())
    ties = (threshold**2 - 1.0).log() + logsigmoid(tied - threshold.log()) + logsigmoid(-tied - threshold.log())
    return -torch.cat([wins, ties]).mean()


def davidson_loss(scores: Float[Tensor, " K"], tiers: Int[Tensor, " K"], *, nu: float) -> Float[Tensor, ""]:
    """Bradley-Terry with ties: a tie is a third outcome, as strong as the geometric mean of the two.

        P(i before j) = exp(d/2)  / (exp(d/2) + exp(-d/2) + nu),     d = s_i - s_j
        P(i tied j)   = nu        / (exp(d/2) + exp(-d/2) + nu)
        loss          = - 1/C(K, 2) * sum over all pairs of log P(what was said of the pair)

    nu >= 0; two equal scores are tied with probability nu / (2 + nu). Ties pull their scores together. nu = 0 is
    Bradley-Terry, under which a tie is impossible: its loss is infinite.
    Davidson 1970, On extending the Bradley-Terry model to accommodate ties in paired comparison experiments,
    https://doi.org/10.1080/01621459.1970.10481082.
    """
    tie = torch.tensor(nu, dtype=scores.dtype, device=scores.device).log()
    won, tied = _margins(scores, tiers)

    def log_total(d: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
        return torch.stack([d / 2, -d / 2, tie.expand_as(d)]).logsumexp(dim=0)

    return -torch.cat([won / 2 - log_total(won), tie - log_total(tied)]).mean()


def centering_penalty(scores: Float[Tensor, " K"], tiers: Int[Tensor, " K"]) -> Float[Tensor, ""]:
    """How far the scores of a pair are from adding up to 0, squared, averaged over the pairs of a ranking.

        penalty = 1/|P| * sum over (w, l) in P of (s_w + s_l)^2

    To be added to a loss with a small weight (0.01): it keeps the scores of a prompt around 0, which no loss here
    does alone. The only term that sees a constant added to all scores.
    Eisenstein et al. 2023, Helping or herding?, https://arxiv.org/abs/2312.09244; TRL's `center_rewards_coefficient`.
    """
    better = tiers.unsqueeze(1) < tiers.unsqueeze(0)
    return (scores.unsqueeze(1) + scores.unsqueeze(0))[better].square().mean()


def ranked_right(scores: Float[Tensor, " K"], tiers: Int[Tensor, " K"]) -> Float[Tensor, ""]:
    """Share of the pairs with different tiers in which the better response scores higher; equal scores count half."""
    better = tiers.unsqueeze(1) < tiers.unsqueeze(0)
    margins = (scores.unsqueeze(1) - scores.unsqueeze(0))[better]
    return ((margins > 0).float() + 0.5 * (margins == 0).float()).mean()


def _margins(scores: Float[Tensor, " K"], tiers: Int[Tensor, " K"]) -> tuple[Float[Tensor, " W"], Float[Tensor, " T"]]:
    """Differences of score of all pairs, each once: better minus worse where one is better, and of those tied."""
    margins = scores.unsqueeze(1) - scores.unsqueeze(0)
    better: Bool[Tensor, "K K"] = tiers.unsqueeze(1) < tiers.unsqueeze(0)
    tied: Bool[Tensor, "K K"] = (tiers.unsqueeze(1) == tiers.unsqueeze(0)).triu(diagonal=1)
    return margins[better], margins[tied]


RankingLoss = Callable[[Tensor, Tensor], Tensor]
"""(scores, tiers) of one ranking -> its loss."""

LOSSES: dict[str, Callable[..., Tensor]] = {
    "bradley-terry": bradley_terry_loss,
    "plackett-luce": plackett_luce_loss,
    "rao-kupper": rao_kupper_loss,
    "davidson": davidson_loss,
}
"""By the recipe's `loss.kind`. Each takes scores, tiers and the keys that `reward.recipe.READS` names."""
