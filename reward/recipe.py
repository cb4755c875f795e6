"""The keys of a recipe of the reward model: `recipes/demo/reward.yaml` is an example."""

from pathlib import Path
from typing import Literal

from pydantic import Field, PositiveFloat, model_validator

from data.select.labelers import LabelersSection
from data.select.sources import Source
from onebase.files.paths import UserPath
from onebase.recipe.sections import (
    Count,
    CountOrZero,
    LearningRate,
    LossWeight,
    Schedule,
    Section,
    SftParentSection,
    StageRecipe,
)


class EvaluationSection(Section):
    """Held-out data: what the accuracy is measured on, and what is to score 0 on average."""

    rankings: tuple[Source, ...] = Field(min_length=1)
    demonstrations: tuple[Source, ...] = Field(min_length=1)


class TrainSection(Section):
    """Sizes and steps."""

    learning_rate: LearningRate = 1e-4
    epochs: Count = 1
    """InstructGPT: more than one overfits."""
    rankings_per_step: Count = 8
    """Prompts per optimiser step; all responses of a prompt stay together."""
    tokens_per_microbatch: Count = 2048
    """Tokens (padding included, where there is any) that go through the model at once; decides memory, not results."""
    warmup_steps: CountOrZero = 0
    schedule: Schedule = "constant"
    """What the learning rate does after the warm-up: stay, or fall to 0 at the last step (InstructGPT: cosine)."""
    max_grad_norm: PositiveFloat = 1.0
    shared_prompt: Literal["auto", "off"] = "auto"
    """auto: rankings are packed, each prompt once and nothing padded, where the model's attention allows it."""
    activation_checkpointing: bool = False


READS: dict[str, tuple[str, ...]] = {
    "bradley-terry": ("margin", "label_smoothing"),
    "plackett-luce": (),
    "rao-kupper": ("theta",),
    "davidson": ("nu",),
}
"""The keys of `loss` that each kind reads."""


class LossSection(Section):
    """What a ranking says of its scores; the equations and their sources are in `reward/losses.py`."""

    kind: Literal["bradley-terry", "plackett-luce", "rao-kupper", "davidson"] = "bradley-terry"
    """Ties: the first two leave them out; the last two pull tied scores together."""
    margin: LossWeight = 0.0
    """bradley-terry: score difference that the loss demands, per tier between two responses."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=0.5)
    """bradley-terry: probability that a labelled pair has the wrong order."""
    theta: float = Field(default=1.5, gt=1, allow_inf_nan=False)
    """rao-kupper: two equal scores are tied with probability (theta - 1) / (theta + 1)."""
    nu: float = Field(default=0.5, gt=0, allow_inf_nan=False)
    """davidson: two equal scores are tied with probability nu / (2 + nu)."""
    centering: LossWeight = 0.0
    """Weight of the penalty on scores that are far from adding up to 0; with any kind."""

    @model_validator(mode="after")
    def _only_what_the_kind_reads(self) -> "LossSection":
        for kind, key in ((kind, key) for kind, keys in READS.items() for key in keys):
            if getattr(self, key) != type(self).model_fields[key].default and kind != self.kind:
                raise ValueError(f"'{key}' is read by kind: {kind} only, and this is kind: {self.kind}; remove it")
        return self

    @property
    def numbers(self) -> dict[str, float]:
        """What this kind of loss reads."""
        return {key: getattr(self, key) for key in READS[self.kind]}


class RewardRecipe(StageRecipe):
    """Stage 2: a reward model on rankings, from an SFT adapter."""

    parents: SftParentSection
    data: tuple[Source, ...] = Field(min_length=1)
    evaluation: EvaluationSection
    labelers: LabelersSection = LabelersSection()
    loss: LossSection = LossSection()
    scale: Literal["none", "unit"] = "none"
    """unit: after the shift the head is divided by the standard deviation of held-out responses' scores."""
    train: TrainSection = TrainSection()
    out: UserPath = Path("runs/reward/reward")
