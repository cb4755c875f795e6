"""Several reward models on the one base: where they disagree, none of them should be trusted.

A policy that optimises one reward model finds what that one gets wrong. Models trained from other seeds get other
things wrong. Their lowest score, or their mean less their disagreement, is therefore harder to deceive.

A member is one adapter and one head; the base is there once. The first member's role is `reward`, the others' are
`reward_2`, `reward_3` ...: a single reward model is an ensemble of one, with the same scores bit for bit.

Shapes: M = members, B = responses.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from jaxtyping import Float
from pydantic import Field, model_validator
from torch import Tensor

from onebase.inference.scoring import score
from onebase.model.roles import Roles
from onebase.recipe.sections import Section

FIRST = "reward"

Combination = Callable[[Tensor], Tensor]
"""(scores of M members for B responses) -> one score for each response."""


def mean_of(scores: Float[Tensor, "M B"]) -> Float[Tensor, " B"]:
    """1/M * sum over i of r_i: mean optimisation. Coste et al. 2023, https://arxiv.org/abs/2310.02743."""
    return scores.mean(dim=0)


def lowest_of(scores: Float[Tensor, "M B"]) -> Float[Tensor, " B"]:
    """min over i of r_i: worst-case optimisation, Coste et al. 2023: a gain counts when every member sees it."""
    return scores.amin(dim=0)


def mean_less_variance(scores: Float[Tensor, "M B"], *, weight: float) -> Float[Tensor, " B"]:
    """1/M * sum over i of r_i  -  weight * 1/M * sum over i of (r_i - mean)^2.

    Uncertainty-weighted optimisation, Coste et al. 2023. The variance is in squared units of the score, so the right
    weight depends on the scale of the scores.
    """
    return scores.mean(dim=0) - weight * scores.var(dim=0, correction=0)


def mean_less_deviation(scores: Float[Tensor, "M B"], *, weight: float) -> Float[Tensor, " B"]:
    """1/M * sum over i of r_i  -  weight * spread, the spread in units of the score: weight 1 is a lower bound by one
    standard deviation, whatever the scale of the scores."""
    return scores.mean(dim=0) - weight * spread_of(scores)


def spread_of(scores: Float[Tensor, "M B"]) -> Float[Tensor, " B"]:
    """The members' standard deviation (divided by M) at each response; 0 for a single member."""
    return scores.std(dim=0, correction=0)


COMBINATIONS: dict[str, Callable[[float], Combination]] = {
    "mean": lambda weight: mean_of,
    "min": lambda weight: lowest_of,
    "mean-minus-variance": lambda weight: partial(mean_less_variance, weight=weight),
    "mean-minus-deviation": lambda weight: partial(mean_less_deviation, weight=weight),
}
"""By a recipe's `combine.rule`; takes `combine.spread_weight`."""


class CombineSection(Section):
    """How the scores of several reward models become one; the equations are in `onebase/inference/ensemble.py`."""

    rule: Literal["mean", "min", "mean-minus-variance", "mean-minus-deviation"] = "mean"
    spread_weight: float = Field(default=1.0, ge=0, le=1e6, allow_inf_nan=False)
    """mean-minus-...: score lost for each unit of the members' variance or deviation."""

    @model_validator(mode="after")
    def _only_what_the_rule_reads(self) -> "CombineSection":
        default = type(self).model_fields["spread_weight"].default
        if not self.rule.startswith("mean-minus") and self.spread_weight != default:
            raise ValueError(
                f"'spread_weight' is read by rules mean-minus-variance and mean-minus-deviation only, and this is "
                f"rule: {self.rule}; remove it"
            )
        return self

    @property
    def combination(self) -> Combination:
        return COMBINATIONS[self.rule](self.spread_weight)


@dataclass(frozen=True, kw_only=True)
class Ensemble:
    """The roles that score, first one first, and what makes one score of theirs."""

    members: tuple[str, ...] = (FIRST,)
    combine: Combination = mean_of


def member_names(count: int) -> tuple[str, ...]:
    """reward, reward_2, reward_3 ..."""
    return (FIRST, *(f"{FIRST}_{number}" for number in range(2, count + 1)))[:count]


def member_scores(
    roles: Roles, members: Sequence[str], sequences: Sequence[Sequence[int]], *, tokens_per_microbatch: int
) -> Float[Tensor, "M B"]:
    """The score of each sequence by each member, by the function that scores for one."""
    rows = [score(roles, name, sequences, tokens_per_microbatch=tokens_per_microbatch) for name in members]
    return torch.stack(rows)
