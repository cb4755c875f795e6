"""What a PPO recipe may say: `recipes/demo/ppo.yaml` is an example with every part that matters."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, PositiveInt, model_validator

from data.select.sources import Source
from onebase.custom.functions import DOTTED
from onebase.files.paths import UserPath
from onebase.inference.scoring import member_names
from onebase.recipe.sections import (
    BaseSection,
    ChatSection,
    CheckpointSection,
    LimitsSection,
    Section,
    Seed,
    Temperature,
    TrackSection,
)
from ppo.maths.rewards import LARGEST_KL_ERROR
from ppo.recipe.reward import KlSection, RewardSection
from ppo.recipe.steering import AlarmsSection, EmaSection, EvaluationSection, FunctionsSection, PretrainingSection
from ppo.recipe.training import AdvantagesSection, TrainSection, ValueSection


class ParentsSection(Section):
    """The finished stages with the adapters that this one starts from."""

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


class PpoRecipe(Section):
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
    pretraining: PretrainingSection | None = None
    ema: EmaSection | None = None
    evaluation: EvaluationSection | None = None
    alarms: AlarmsSection = AlarmsSection()
    functions: FunctionsSection = FunctionsSection()
    track: TrackSection = TrackSection()
    checkpoint: CheckpointSection = CheckpointSection()
    seed: Seed = 0
    out: UserPath = Path("runs/ppo/ppo")

    @property
    def value_role(self) -> str | None:
        """The role that predicts values: `value`, `policy` with a head on its trunk, or None without any."""
        if self.advantages.kind != "gae":
            return None
        return "value" if self.value.kind == "adapter" else "policy"

    @property
    def reward_models(self) -> tuple[str, ...]:
        """Roles of the reward models."""
        return member_names(len(self.parents.rewards))

    @property
    def function_names(self) -> tuple[str, ...]:
        """The Python functions that decide a result, as `package.module:name`."""
        judge = None if self.evaluation is None else self.evaluation.judge
        names = (*(term.function for term in self.reward.terms), judge, self.sampling.engine)
        return tuple(name for name in names if name is not None)

    @property
    def one_step_a_rollout(self) -> bool:
        """Whether the policy that learns is always the one that sampled: every ratio is 1 up to decoding's error."""
        return self.train.epochs == 1 and self.train.minibatch == self.train.batch

    @property
    def standardises_advantages(self) -> bool:
        return self.value_role is not None if self.advantages.standardise is None else self.advantages.standardise

    @property
    def aggregation(self) -> str:
        # The sum over a response, times a number: any other weight depends on the lengths that were drawn, and RLOO's
        # gradient is not unbiased then.
        defaults = {"gae": "token-mean", "grpo": "sequence-mean", "rloo": "constant", "dr_grpo": "constant"}
        return self.train.aggregation or defaults[self.advantages.kind]

    @model_validator(mode="after")
    def _something_scores(self) -> "PpoRecipe":
        has_models = any(term.kind == "adapter" for term in self.reward.terms)
        if has_models and not self.parents.rewards:
            raise ValueError("parents.reward is missing: a term of kind adapter is the reward model's score")
        if self.parents.rewards and not has_models:
            raise ValueError("no term of `reward` is of kind adapter, so parents.reward scores nothing. Remove it")
        if self.reward.require_better_than_baselines and not has_models:
            raise ValueError(
                "reward.require_better_than_baselines is about reward models, and only functions score here. Remove it"
            )
        return self

    @model_validator(mode="after")
    def _options_fit_together(self) -> "PpoRecipe":
        if self.value_role is None and self.sampling.responses_per_prompt < 2:
            raise ValueError(
                f"advantages.kind={self.advantages.kind} compares the responses to one prompt with each other: "
                "it needs sampling.responses_per_prompt of 2 or more, found 1"
            )
        if self.value.warmup_steps and (self.value_role is None or self.value.kind == "shared"):
            why = (
                "there is no value function"
                if self.value_role is None
                else "the value head shares the policy's adapter"
            )
            raise ValueError(f"value.warmup_steps: the value function cannot learn alone, {why}. Remove it")
        if self.train.importance_cap is not None and self.train.old_logprobs != "recomputed":
            raise ValueError(
                "train.importance_cap compares decoding's log-probabilities with recomputed ones: it needs "
                "train.old_logprobs=recomputed"
            )
        return self

    @model_validator(mode="after")
    def _every_option_has_its_effect(self) -> "PpoRecipe":
        if self.ema is not None and not self.ema.exported and not (self.evaluation and self.ema.evaluated):
            raise ValueError(
                "ema: the average is neither exported nor evaluated, so nothing would ever read it. "
                "Set ema.exported or ema.evaluated with an `evaluation`, or remove `ema`"
            )
        train, adaptive, overlong = self.train, self.kl.adaptive, self.reward.overlong
        unread = [
            k for k in ("learning_rate", "clip", "weight") if getattr(self.value, k) != getattr(ValueSection(), k)
        ]
        if self.value_role is None and unread:
            keys = ", ".join(f"value.{key}" for key in unread)
            raise ValueError(f"{keys}: advantages.kind={self.advantages.kind} has no value function. Remove it")
        if self.value.kind == "shared" and self.value.learning_rate is not None:
            raise ValueError(
                "value.learning_rate has no effect with value.kind=shared: the head is trained with the policy. "
                "Remove it, or use value.kind=adapter"
            )
        if train.target_kl is not None and train.epochs == 1:
            raise ValueError(
                "train.target_kl ends epochs early, and train.epochs=1 leaves none to end. Remove it, or "
                "raise train.epochs"
            )
        is_exact = self.sampling.engine is None or train.old_logprobs == "recomputed"
        if train.dual_clip is not None and self.one_step_a_rollout and is_exact:
            raise ValueError(
                "train.dual_clip bounds what a ratio does that has grown, and with one optimiser step a rollout every "
                "ratio is 1. Remove it, or choose a train.minibatch below train.batch"
            )
        defaults = TrainSection()
        if self.value_role is None and (train.discount, train.gae_lambda) != (defaults.discount, defaults.gae_lambda):
            raise ValueError(
                "train.discount and train.gae_lambda are read by advantages.kind=gae only, found "
                f"{self.advantages.kind}. Remove them"
            )
        if adaptive is not None and adaptive.horizon <= LARGEST_KL_ERROR * train.batch:
            raise ValueError(
                f"kl.adaptive.horizon={adaptive.horizon} counts episodes, and a step has train.batch={train.batch}: "
                f"the weight could turn negative. Choose more than {LARGEST_KL_ERROR * train.batch:g}, such as ten "
                f"steps' {10 * train.batch}"
            )
        if self.standardises_advantages and train.batch * self.sampling.max_new_tokens == 1:
            raise ValueError(
                "advantages.standardise: a step has one episode of one token (train.batch=1, "
                "sampling.max_new_tokens=1), and a single number less its mean is 0: the policy would never move. "
                "Raise one of them, or set advantages.standardise=false"
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
        return self.train.episodes // self.train.minibatch * self.train.epochs

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
