"""What a run optimises, on held-out prompts: the mean of the very scores that PPO would reward these answers with.

    objective = mean over prompts of shape(reward)        shape: whitening, clip, less all penalties

The price of the KL is not in it: `evaluation.kl_budget` bounds the KL of `best/`, and a price would count it twice.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from ppo.maths.rewards import ScoreMoments
from ppo.recipe.recipe import PpoRecipe
from ppo.scores import shape_scores

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

    def as_state(self) -> dict[str, Tensor]:
        return {"scores": self.scores, "stopped": self.stopped, "lengths": self.lengths}

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> "Answers":
        return cls(scores=state["scores"], stopped=state["stopped"], lengths=state["lengths"])

    def shaped(self, recipe: PpoRecipe, moments: ScoreMoments) -> Float[Tensor, " B"]:
        """The scores as PPO rewards them. moments: of the scores of the run up to now."""
        limit = recipe.sampling.max_new_tokens
        return shape_scores(self.scores, self.stopped, self.lengths, recipe.reward, limit=limit, moments=moments)

    def objective(self, recipe: PpoRecipe, moments: ScoreMoments) -> float:
        """Two answers compare on one scale only: earlier ones are measured again by the moments of now."""
        return float(self.shaped(recipe, moments).mean())
