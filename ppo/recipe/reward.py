"""The keys of a PPO recipe for the reward, and for the price of the KL to the SFT policy."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, model_validator

from onebase.custom.functions import DOTTED
from onebase.inference.scoring import CombineSection
from onebase.recipe.sections import Count, LossWeight, Section

Bound = Annotated[PositiveFloat, Field(le=1e9)]
"""Bound of numbers that are clipped: fp32 has to hold it, and its square."""


class RewardTerm(Section):
    """One part of the reward, multiplied by its weight."""

    kind: Literal["adapter", "function"] = "adapter"
    """adapter: the reward model; with several in parents.reward all of them, combined. function: Python."""
    weight: Annotated[float, Field(ge=-1e9, le=1e9)] = 1.0
    combine: CombineSection = CombineSection()
    function: Annotated[str, Field(pattern=DOTTED)] | None = None
    """package.module:name of a function of (Prompt, response text) that returns a number."""
    name: str | None = None
    """What its own scores are logged as (ppo/reward/NAME); None: reward_model, or the function's name."""

    def named(self, index: int) -> str:
        default = "reward_model" if self.function is None else self.function.rpartition(":")[2]
        return self.name or (default if index == 0 else f"{default}_{index + 1}")

    @model_validator(mode="after")
    def _only_what_the_kind_reads(self) -> "RewardTerm":
        if self.kind == "function" and self.function is None:
            raise ValueError("'function' is missing: name one as package.module:name")
        if self.kind == "function" and self.combine != CombineSection():
            raise ValueError("'combine' is read by kind: adapter only; remove it")
        if self.kind == "adapter" and self.function is not None:
            raise ValueError("'function' is read by kind: function only; set kind: function, or remove it")
        return self


class OverlongSection(Section):
    """A penalty that grows over the last tokens before the limit."""

    buffer: Count
    """Tokens before sampling.max_new_tokens at which it begins."""
    weight: Annotated[PositiveFloat, Field(le=1e6)] = 1.0
    """Taken off at the limit."""


class RewardSection(Section):
    """What an episode's score is made of."""

    terms: tuple[RewardTerm, ...] = (RewardTerm(),)
    eos_penalty: LossWeight = 1.0
    """Taken off the score of a response that was cut at max_new_tokens."""
    whiten: bool = False
    """Whether the sum of the terms is standardised by the mean and variance of every score of the run so far."""
    clip: Bound | None = None
    """That is kept between minus this and this, before penalties."""
    overlong: OverlongSection | None = None
    require_better_than_baselines: bool = False
    """Whether a run is refused unless all reward models beat "longer wins", "shorter wins" and a bag of words on
    held-out rankings; else there is only a warning."""

    @property
    def names(self) -> list[str]:
        """Names of the terms, in their order."""
        return [term.named(index) for index, term in enumerate(self.terms)]

    @model_validator(mode="after")
    def _names_differ(self) -> "RewardSection":
        if not self.names or len(set(self.names)) < len(self.names):
            raise ValueError(f"terms: expected one at least, each with a unique name, found {self.names}")
        return self


class AdaptiveKl(Section):
    """A KL weight that is steered towards a KL (Ziegler et al. 2019)."""

    target: PositiveFloat
    """Nats a response."""
    horizon: Count = 10_000
    """Episodes: the larger, the slower the weight follows."""


class KlSection(Section):
    """The price of leaving the SFT policy."""

    weight: LossWeight = 0.05
    """Reward lost per nat of KL to the SFT policy; where it adapts, only the first one."""
    estimator: Literal["k1", "k3"] = "k1"
    """k1: log pi - log pi_ref of the sampled token, in the reward, as InstructGPT. k3: a term of the loss, as GRPO."""
    adaptive: AdaptiveKl | None = None
    """None: the weight is constant, as in InstructGPT."""

    @model_validator(mode="after")
    def _weight_can_grow(self) -> "KlSection":
        if self.adaptive is not None and self.weight == 0:
            raise ValueError("kl.adaptive multiplies the weight, which is 0 and stays 0. Start with kl.weight=0.05")
        return self
