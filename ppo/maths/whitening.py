"""Scores on a scale of their own: standardised by the mean and the variance of every score that the run has seen.

Shapes: B = episodes.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

COUNT, MEAN, VARIANCE = "ppo/score_seen", "ppo/score_running_mean", "ppo/score_running_variance"
"""The metrics that the state is: each step reads it from those of the last one, a resumed run from its checkpoint's."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """Number, mean and population variance of all scores so far, as Python floats: JSON keeps them to the bit."""

    count: float = 0.0
    mean: float = 0.0
    variance: float = 0.0

    @classmethod
    def of(cls, metrics: Mapping[str, float]) -> "Seen":
        """As the metrics of a step have it; nothing where there is no step yet."""
        return cls(count=metrics.get(COUNT, 0.0), mean=metrics.get(MEAN, 0.0), variance=metrics.get(VARIANCE, 0.0))

    @property
    def metrics(self) -> dict[str, float]:
        return {COUNT: self.count, MEAN: self.mean, VARIANCE: self.variance}

    def with_more(self, scores: Float[Tensor, " B"]) -> "Seen":
        """The moments of the scores so far and of these together.

            n = n_1 + n_2,   d = m_2 - m_1
            m = m_1 + d n_2 / n
            v = (n_1 v_1 + n_2 v_2 + d^2 n_1 n_2 / n) / n

        Chan, Golub and LeVeque 1983, https://doi.org/10.1080/00031305.1983.10483115.
        """
        more = float(len(scores))
        variance, mean = (moment.item() for moment in torch.var_mean(scores.double(), correction=0))
        count, apart = self.count + more, mean - self.mean
        squares = self.count * self.variance + more * variance + apart**2 * self.count * more / count
        return Seen(count=count, mean=self.mean + apart * more / count, variance=squares / count)

    def standardised(self, scores: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
        """Less the mean, over the standard deviation; 0 where all scores so far are equal."""
        # As `onebase.tokens.standardise`: the floor keeps a constant score from being divided by nothing.
        return ((scores.double() - self.mean) * (self.variance + 1e-8) ** -0.5).float()
