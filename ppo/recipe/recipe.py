"""What a PPO recipe may say: `recipes/demo/ppo.yaml` is an example with every part that matters."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from data.select.sources import Source
from onebase.custom.functions import DOTTED
from onebase.files.paths import UserPath
from onebase.memory import halved
from onebase.recipe.sections import (
    BaseSection,
    ChatSection,
    CheckpointSection,
    LearningRate,
    LimitsSection,
    LossWeight,
    Schedule,
    Section,
    Seed,
    Temperature,
    TrackSection,
)
from ppo.recipe.reward import MOST, Bound, KlSection, RewardSection
from ppo.recipe.steering import Steered


class ParentsSection(Section):
    """The finished stages whose adapters this one starts from."""

    sft: UserPath
    """Stage folder of the SFT adapter: where the policy starts, and the reference."""
    reward: UserPath | Annotated[tuple[UserPath, ...], Field(min_length=1)] | None = None
    """Stage folder of the reward model: what scores, and where the value function starts. A list: an ensemble; the
    value function starts from its first. None: only functions score, and it starts from the SFT adapter."""

    @property
    def rewards(self) -> tuple[Path, ...]:
        if self.reward is None:
            return ()
        return (self.reward,) if isinstance(self.reward, Path) else self.reward


class SamplingSection(Section):
    """How responses are drawn. No top-k and no top-p: the KL is only right for the distribution that was sampled."""

    max_new_tokens: PositiveInt = 64
    temperature: Temperature = 1.0
    """Divides the logits when sampling and in every log-probability."""
    responses_per_prompt: PositiveInt = 1
    batch: PositiveInt = 32
    """Episodes decoded at once, each in a slot that the next prompt takes when it ends. Decides memory, not results."""
    engine: Annotated[str, Field(pattern=DOTTED)] | None = None
    """package.module:name of what draws the responses (`onebase.inference.sampling.Engine`); None: this process.
    Another one's log-probabilities are not quite those of training: see train.old_logprobs and train.importance_cap."""


class ValueSection(Section):
    """The value function."""

    kind: Literal["adapter", "shared"] = "adapter"
    """adapter: its own, a copy of the reward model's (InstructGPT), or where only functions score of the SFT adapter
    with a head of zeros. shared: a head on the policy's trunk, cheaper."""
    learning_rate: LearningRate | None = None
    """None: the policy's."""
    clip: Bound = 0.2
    """How far a value may move from the one at rollout time before its loss stops following."""
    weight: Annotated[PositiveFloat, Field(le=1e6)] = 0.5
    """Weight of the value loss; with a value adapter of its own only the scale of its gradient before clipping."""
    warmup_steps: int = Field(default=0, ge=0)
    """Steps of the run in which the value function learns alone: until it knows something, advantages are noise."""


class AdvantagesSection(Section):
    """How much better than expected a token was: docs/ppo.md has the equations."""

    kind: Literal["gae", "rloo", "grpo", "dr_grpo"] = "gae"
    """gae: against a learned value function. The others: against the other responses to the prompt, without one;
    `value` is not read then."""
    whiten: bool | None = None
    """Whether advantages are standardised over the batch. None: gae's are, the others' are not."""


class TrainSection(Section):
    """Sizes and steps of the updates."""

    learning_rate: LearningRate = 1e-5
    episodes: PositiveInt = 512
    """In the whole run."""
    batch: PositiveInt = 64
    """Episodes rolled out between two optimiser phases."""
    minibatch: PositiveInt = 32
    """Episodes per optimiser step."""
    tokens_per_microbatch: PositiveInt = 2048
    """Tokens (padding included) that go through the model at once; decides memory, not results."""
    inner_epochs: PositiveInt = 1
    clip: Bound = 0.2
    dual_clip: Annotated[float, Field(gt=1, le=1e9)] | None = None
    """Bound of the loss of tokens with a negative advantage whose ratio has grown; Ye et al. 2020 have 3."""
    entropy_weight: LossWeight = 0.0
    """Of the entropy bonus, in nats a token."""
    target_kl: PositiveFloat | None = None
    """Nats a token between the policy that sampled and the one that learns: no further inner epoch beyond it."""
    aggregation: Literal["token-mean", "sequence-mean", "constant"] | None = None
    """What a mini-batch's loss is a mean of: tokens, or responses of any length alike, or max_new_tokens a response.
    None: what the advantages' paper does (gae: token-mean, grpo: sequence-mean, rloo and dr_grpo: constant)."""
    discount: float = Field(default=1.0, gt=0, le=1)
    trace: float = Field(default=0.95, ge=0, le=1)
    """Lambda of generalised advantage estimation."""
    max_grad_norm: PositiveFloat = 1.0
    """For each trained role on its own: they share no parameter."""
    warmup_steps: int = Field(default=0, ge=0)
    """Optimiser steps over which the learning rate rises from 0."""
    schedule: Schedule = "constant"
    """What the learning rate does after the warm-up: stay, or fall to 0 at the last optimiser step."""
    old_logprobs: Literal["sampled", "recomputed"] = "sampled"
    """sampled: kept from decoding, one forward less. recomputed: by the training forward, where decoding is inexact."""
    importance_cap: Bound | None = None
    """With recomputed ones: weigh each token by how much likelier training finds it than decoding did, at most this."""
    activation_checkpointing: bool = False


class PpoRecipe(Steered):
    """Stage 3: PPO from an SFT adapter against a reward model."""

    base: BaseSection
    chat: ChatSection = ChatSection()
    parents: ParentsSection
    data: tuple[Source, ...] = Field(min_length=1)
    limits: LimitsSection = LimitsSection()
    sampling: SamplingSection = SamplingSection()
    reward: RewardSection = RewardSection()
    kl: KlSection = KlSection()
    advantages: AdvantagesSection = AdvantagesSection()
    value: ValueSection = ValueSection()
    train: TrainSection = TrainSection()
    track: TrackSection = TrackSection()
    checkpoint: CheckpointSection = CheckpointSection()
    seed: Seed = 0
    out: UserPath = Path("runs/ppo/ppo")

    @property
    def has_value(self) -> bool:
        """Whether there is a value function at all."""
        return self.advantages.kind == "gae"

    @property
    def function_names(self) -> tuple[str, ...]:
        """The Python functions that decide a result, as `package.module:name`."""
        judge = None if self.evaluation is None else self.evaluation.judge
        given = (*(term.function for term in self.reward.terms), judge, self.sampling.engine)
        return tuple(one for one in given if one is not None)

    @property
    def one_step_a_rollout(self) -> bool:
        """Whether the policy that learns is always the one that sampled: every ratio is 1 up to decoding's error."""
        return self.train.inner_epochs == 1 and self.train.minibatch == self.train.batch

    @property
    def values_in_update(self) -> bool:
        """Whether a rollout has one optimiser step: the values that it starts from are then the rollout's own."""
        return self.one_step_a_rollout and self.has_value and self.value.kind == "adapter"

    @property
    def whitens(self) -> bool:
        return self.has_value if self.advantages.whiten is None else self.advantages.whiten

    @property
    def aggregation(self) -> str:
        # The sum over a response, times a number: any other weight depends on the lengths that were drawn, and RLOO's
        # gradient is not unbiased then.
        own = {"gae": "token-mean", "grpo": "sequence-mean", "rloo": "constant", "dr_grpo": "constant"}
        return self.train.aggregation or own[self.advantages.kind]

    @model_validator(mode="after")
    def _something_scores(self) -> "PpoRecipe":
        asked = any(term.kind == "adapter" for term in self.reward.terms)
        if asked and not self.parents.rewards:
            raise ValueError("parents.reward is missing: a term of kind adapter is the reward model's score")
        if self.parents.rewards and not asked:
            raise ValueError("no term of `reward` is of kind adapter, so parents.reward scores nothing. Remove it")
        if self.reward.require_better_than_baselines and not asked:
            raise ValueError(
                "reward.require_better_than_baselines is about reward models, and only functions score here. Remove it"
            )
        return self

    @model_validator(mode="after")
    def _options_fit_together(self) -> "PpoRecipe":
        if not self.has_value and self.sampling.responses_per_prompt < 2:
            raise ValueError(
                f"advantages.kind={self.advantages.kind} compares the responses to one prompt with each other: "
                "it needs sampling.responses_per_prompt of 2 or more, found 1"
            )
        if self.value.warmup_steps and (not self.has_value or self.value.kind == "shared"):
            why = "there is no value function" if not self.has_value else "the value head shares the policy's adapter"
            raise ValueError(f"value.warmup_steps: the value function cannot learn alone, {why}. Remove it")
        if self.train.importance_cap is not None and self.train.old_logprobs != "recomputed":
            raise ValueError(
                "train.importance_cap compares decoding's log-probabilities with recomputed ones: it needs "
                "train.old_logprobs=recomputed"
            )
        return self

    @model_validator(mode="after")
    def _every_option_has_its_effect(self) -> "PpoRecipe":
        train, adaptive, overlong = self.train, self.kl.adaptive, self.reward.overlong
        unread = [
            k for k in ("learning_rate", "clip", "weight") if getattr(self.value, k) != getattr(ValueSection(), k)
        ]
        if not self.has_value and unread:
            keys = ", ".join(f"value.{key}" for key in unread)
            raise ValueError(f"{keys}: advantages.kind={self.advantages.kind} has no value function. Remove it")
        if self.value.kind == "shared" and self.value.learning_rate is not None:
            raise ValueError(
                "value.learning_rate has no effect with value.kind=shared: the head is trained with the policy. "
                "Remove it, or use value.kind=adapter"
            )
        if train.target_kl is not None and train.inner_epochs == 1:
            raise ValueError(
                "train.target_kl ends inner epochs early, and train.inner_epochs=1 leaves none to end. Remove it, or "
                "raise train.inner_epochs"
            )
        own = self.sampling.engine is None or train.old_logprobs == "recomputed"
        if train.dual_clip is not None and self.one_step_a_rollout and own:
            raise ValueError(
                "train.dual_clip bounds what a ratio does that has grown, and with one optimiser step a rollout every "
                "ratio is 1. Remove it, or choose a train.minibatch below train.batch"
            )
        defaults = TrainSection()
        if not self.has_value and (train.discount, train.trace) != (defaults.discount, defaults.trace):
            raise ValueError(
                f"train.discount and train.trace are read by advantages.kind=gae only, found {self.advantages.kind}. "
                "Remove them"
            )
        if adaptive is not None and adaptive.horizon <= MOST * train.batch:
            raise ValueError(
                f"kl.adaptive.horizon={adaptive.horizon} counts episodes, and a step has train.batch={train.batch}: "
                f"the weight could turn negative. Choose more than {MOST * train.batch:g}, such as ten steps' "
                f"{10 * train.batch}"
            )
        if self.whitens and train.batch * self.sampling.max_new_tokens == 1:
            raise ValueError(
                "advantages.whiten: a step has one episode of one token (train.batch=1, sampling.max_new_tokens=1), "
                "and a single number less its mean is 0: the policy would never move. Raise one of them, or set "
                "advantages.whiten=false"
            )
        if overlong is not None and overlong.buffer > self.sampling.max_new_tokens:
            raise ValueError(
                f"reward.overlong.buffer={overlong.buffer}: a response has sampling.max_new_tokens="
                f"{self.sampling.max_new_tokens} tokens at most, so every one would pay. Choose a smaller buffer"
            )
        return self

    @property
    def steps(self) -> int:
        """Rollout and update rounds in the run."""
        return self.train.episodes // self.train.batch

    @property
    def optimizer_steps(self) -> int:
        """In the whole run, none skipped."""
        return self.train.episodes // self.train.minibatch * self.train.inner_epochs

    def halved(self, count: int) -> "PpoRecipe":
        """The same run in micro-batches of 1/2^count, where memory does not suffice for those of the recipe."""
        if not count:
            return self
        smaller = {
            "sampling": self.sampling.model_copy(update={"batch": halved(self.sampling.batch, count)}),
            "train": self.train.model_copy(
                update={"tokens_per_microbatch": halved(self.train.tokens_per_microbatch, count)}
            ),
        }
        return self.model_copy(update=smaller)

    @property
    def largest(self) -> int:
        """The largest size that `halved` halves."""
        return max(self.sampling.batch, self.train.tokens_per_microbatch)

    @property
    def prompts_per_step(self) -> int:
        return self.train.batch // self.sampling.responses_per_prompt

    @model_validator(mode="after")
    def _sizes_divide(self) -> "PpoRecipe":
        for larger, smaller, value, by in (
            ("train.episodes", "train.batch", self.train.episodes, self.train.batch),
            ("train.batch", "train.minibatch", self.train.batch, self.train.minibatch),
            ("train.batch", "sampling.responses_per_prompt", self.train.batch, self.sampling.responses_per_prompt),
        ):
            if value % by:
                raise ValueError(
                    f"{larger}={value} is not a multiple of {smaller}={by}: choose {value - value % by or by}"
                )
        if self.value.warmup_steps >= self.steps:
            raise ValueError(
                f"value.warmup_steps={self.value.warmup_steps}: the run has {self.steps} steps (train.episodes / "
                "train.batch), and the policy would learn in none of them. Choose fewer"
            )
        return self
