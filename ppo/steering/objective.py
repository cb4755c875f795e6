"""What a run optimises, on held-out prompts: the mean of the very scores that PPO would reward these answers with.

    objective = mean over prompts of shape(reward)        shape: whitening, clip, less all penalties

The price of the KL is not in it: `evaluation.kl_budget` bounds the KL of `best/`, and a price would count it twice.
"""

from dataclasses import dataclass

from jaxtyping import Bool, Float
from torch import Tensor

from ppo.maths.rewards import ScoreMoments
from ppo.scores import Reward, shape_scores

OBJECTIVE, JUDGE = "objective", "judge"
"""Names of the metrics that `best/` is chosen by."""


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What is rewarded of the answers to B held-out prompts."""

    scores: Float[Tensor, " B"]
    """The sum of the reward's terms, each times its weight."""
    stopped: Bool[Tensor, " B"]
    lengths: Float[Tensor, " B"]
    """Tokens."""

    def shaped(self, reward: Reward, moments: ScoreMoments) -> Float[Tensor, " B"]:
        """The scores as PPO rewards them. moments: of the scores of the run up to now."""
        return shape_scores(self.scores, self.stopped, self.lengths, reward, moments)

    def objective(self, reward: Reward, moments: ScoreMoments) -> float:
        """Two answers compare on one scale only: earlier ones are measured again by the moments of now."""
        return float(self.shaped(reward, moments).mean())
