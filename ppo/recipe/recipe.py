"""The keys of a PPO recipe: `recipes/demo/ppo.yaml` is an example with every part that matters."""

import math
from pathlib import Path
from typing import Annotated

from pydantic import Field, model_validator

from data.select.sources import Source
from onebase.custom.functions import DOTTED
from onebase.files.paths import UserPath
from onebase.recipe.sections import (
    Count,
    Section,
    StageRecipe,
    Temperature,
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

    max_new_tokens: Count = 64
    temperature: Temperature = 1.0
    """Divides the logits when sampling and in every log-probability."""
    responses_per_prompt: Count = 1
    batch: Count = 32
    """Episodes decoded at once, each in a slot that the next prompt takes when it ends. Decides memory, not results."""
    engine: Annotated[str, Field(pattern=DOTTED)] | None = None
    """package.module:name of what draws the responses (`onebase.inference.sampling.Engine`); None: this process.
    Another one's log-probabilities are not quite those of training: see train.old_logprobs and train.importance_cap."""


class PpoRecipe(StageRecipe):
    """Stage 3: PPO from an SFT adapter against a reward model."""

    parents: ParentsSection
    data: tuple[Source, ...] = Field(min_length=1)
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
    out: UserPath = Path("runs/ppo/ppo")

    @property
    def value_role(self) -> str | None:
        """The role that predicts values: `value`, `policy` with a head on its trunk, or None without any."""
        if self.advantages.kind != "gae":
            return None
        return "value" if self.value.kind == "adapter" else "policy"

    @property
    def function_names(self) -> tuple[str, ...]:
        """The Python functions that decide a result, as `package.module:name`."""
        judge = None if self.evaluation is None else self.evaluation.judge
        names = (*(term.function for term in self.reward.terms), judge, self.sampling.engine)
        return tuple(name for name in names if name is not None)

    @property
    def standardises_advantages(self) -> bool:
        return self.value_role is not None if self.advantages.standardise is None else self.advantages.standardise

    @property
    def aggregation(self) -> str:
        # The sum over a response, times a number: any other weight depends on the lengths that were drawn, and RLOO's
        # gradient is not unbiased then.
        defaults = {"gae": "token-mean", "grpo": "sequence-mean", "rloo": "constant", "dr_grpo": "constant"}
        return self.train.aggregation or defaults[self.advantages.kind]

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
    def _options_fit_together(self) -> "PpoRecipe":
        for is_wrong, text in (*self._contradictions(), *self._options_without_effect()):
            if is_wrong:
                raise ValueError(text)
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

    def _contradictions(self) -> tuple[tuple[bool, str], ...]:
        """What could not work: whether it is the case, and what the error says."""
        has_models, train = any(term.kind == "adapter" for term in self.reward.terms), self.train
        why = "there is no value function" if self.value_role is None else "the value head shares the policy's adapter"
        return (
            (
                has_models and not self.parents.rewards,
                "parents.reward is missing: a term of kind adapter is the reward model's score",
            ),
            (
                not has_models and bool(self.parents.rewards),
                "no term of `reward` is of kind adapter, so parents.reward scores nothing. Remove it",
            ),
            (
                not has_models and self.reward.require_better_than_baselines,
                "reward.require_better_than_baselines is about reward models, and only functions score here. Remove it",
            ),
            (
                self.value_role is None and self.sampling.responses_per_prompt < 2,
                f"advantages.kind={self.advantages.kind} compares the responses to one prompt with each other: "
                "it needs sampling.responses_per_prompt of 2 or more, found 1",
            ),
            (
                self.value.warmup_steps > 0 and self.value_role != "value",
                f"value.warmup_steps: the value function cannot learn alone, {why}. Remove it",
            ),
            (
                train.importance_cap is not None and train.old_logprobs != "recomputed",
                "train.importance_cap compares decoding's log-probabilities with recomputed ones: it needs "
                "train.old_logprobs=recomputed",
            ),
        )

    def _options_without_effect(self) -> tuple[tuple[bool, str], ...]:
        """What nothing would read, or what would spoil every step: whether it is the case, and what the error says."""
        train, value, kind = self.train, self.value, self.advantages.kind
        new_tokens, plain, defaults = self.sampling.max_new_tokens, ValueSection(), TrainSection()
        unread = [key for key in ("learning_rate", "clip", "weight") if getattr(value, key) != getattr(plain, key)]
        keys = ", ".join(f"value.{key}" for key in unread)
        horizon = math.inf if self.kl.adaptive is None else self.kl.adaptive.horizon
        buffer = 0 if self.reward.overlong is None else self.reward.overlong.buffer
        return (
            (
                self.value_role is None and bool(unread),
                f"{keys}: advantages.kind={kind} has no value function. Remove it",
            ),
            (
                value.kind == "shared" and value.learning_rate is not None,
                "value.learning_rate has no effect with value.kind=shared: the head is trained with the policy. "
                "Remove it, or use value.kind=adapter",
            ),
            (
                self.value_role is None
                and (train.discount, train.gae_lambda) != (defaults.discount, defaults.gae_lambda),
                f"train.discount and train.gae_lambda are read by advantages.kind=gae only, found {kind}. Remove them",
            ),
            (
                horizon <= LARGEST_KL_ERROR * train.batch,
                f"kl.adaptive.horizon={horizon} counts episodes, and a step has train.batch={train.batch}: the weight "
                f"could turn negative. Choose more than {LARGEST_KL_ERROR * train.batch:g}, such as ten steps' "
                f"{10 * train.batch}",
            ),
            (
                self.standardises_advantages and train.batch * new_tokens == 1,
                "advantages.standardise: a step has one episode of one token (train.batch=1, "
                "sampling.max_new_tokens=1), and a single number less its mean is 0: the policy would never move. "
                "Raise one of them, or set advantages.standardise=false",
            ),
            (
                buffer > new_tokens,
                f"reward.overlong.buffer={buffer}: a response has sampling.max_new_tokens={new_tokens} tokens at most, "
                "so every one would pay. Choose a smaller buffer",
            ),
        )
