"""Sections of a PPO recipe on the value function, advantages, and the updates."""

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat

from onebase.recipe.sections import Count, CountOrZero, LearningRate, LossWeight, Schedule, Section
from ppo.recipe.reward import Bound


class ValueSection(Section):
    """The value function."""

    kind: Literal["adapter", "shared"] = "adapter"
    """adapter: a separate adapter. It starts as a copy of the reward model (InstructGPT). If only functions score, it
    starts as the SFT adapter with a head of zeros. shared: a head on the policy's trunk, cheaper."""
    learning_rate: LearningRate | None = None
    """None: the policy's."""
    clip: Bound = 0.2
    """How far a value may move from the one at rollout time before its loss stops following."""
    weight: Annotated[PositiveFloat, Field(le=1e6)] = 0.5
    """Weight of the value loss; with a value adapter of its own only the scale of its gradient before clipping."""
    warmup_steps: CountOrZero = 0
    """Steps of the run in which the value function learns alone: until it knows something, advantages are noise."""


class AdvantagesSection(Section):
    """How much better than expected a token was: docs/ppo.md has the equations."""

    kind: Literal["gae", "rloo", "grpo", "dr_grpo"] = "gae"
    """gae compares with a learned value function. The others compare with the other responses to the prompt, and need
    no value function; `value` is not read then."""
    standardise: bool | None = None
    """Whether advantages are standardised over the batch. None: gae's are, the others' are not."""


class TrainSection(Section):
    """Sizes and steps of the updates."""

    learning_rate: LearningRate = 1e-5
    episodes: Count = 512
    """In the whole run."""
    batch: Count = 64
    """Episodes rolled out between two optimiser phases."""
    minibatch: Count = 32
    """Episodes per optimiser step."""
    tokens_per_microbatch: Count = 2048
    """Tokens (padding included) that go through the model at once; decides memory, not results."""
    epochs: Count = 1
    """Times that the update goes through the episodes of a step."""
    clip: Bound = 0.2
    entropy_weight: LossWeight = 0.0
    """Weight of the entropy bonus, which is in nats per token."""
    aggregation: Literal["token-mean", "sequence-mean", "constant"] | None = None
    """What a mini-batch's loss is a mean of: tokens, or responses of any length alike, or max_new_tokens per response.
    None: what the advantages' paper does (gae: token-mean, grpo: sequence-mean, rloo and dr_grpo: constant)."""
    discount: float = Field(default=1.0, gt=0, le=1)
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    max_grad_norm: PositiveFloat = 1.0
    """For each trained role on its own: they share no parameter."""
    warmup_steps: CountOrZero = 0
    """Optimiser steps over which the learning rate rises from 0."""
    schedule: Schedule = "constant"
    """What the learning rate does after the warm-up: stay, or fall to 0 at the last optimiser step."""
    old_logprobs: Literal["sampled", "recomputed"] = "sampled"
    """sampled: kept from decoding, one forward less. recomputed: by the training forward, where decoding is inexact."""
    importance_cap: Bound | None = None
    """With recomputed ones: weigh each token by how much likelier training finds it than decoding did, at most this."""
    activation_checkpointing: bool = False
