"""What a DPO recipe may say: `recipes/demo/dpo.yaml` is an example."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, PositiveInt, model_validator
from trl.trainer.dpo_config import DPOConfig

from data.sources import Source
from onebase.checkpoint import CheckpointSection
from onebase.paths import UserPath
from onebase.recipes import BaseSection, ChatSection, LimitsSection, Section, TrackSection
from onebase.trainers import TrlSection, trl_section

if TYPE_CHECKING:
    DpoArguments = TrlSection
else:
    DpoArguments = trl_section(
        DPOConfig, defaults={"learning_rate": 5e-5, "num_train_epochs": 1, "max_length": 1024, "beta": 0.1}
    )


SMOOTHED = {"aot", "aot_unpaired", "exo_pair", "robust"}
"""TRL's losses that read `label_smoothing`."""

Pairing = Literal["best-worst", "best-random", "all"]


class ParentsSection(Section):
    """The finished stage whose adapter this one starts from, and is held to."""

    sft: UserPath


class EvaluationSection(Section):
    """Held-out rankings: what `dpo/eval_loss` and `dpo/eval_accuracy` are measured on, before and after."""

    rankings: tuple[Source, ...] = Field(min_length=1)
    samples: PositiveInt = 8
    """Held-out prompts answered at the end, for a person to read."""


class DpoRecipe(Section):
    """Stage 3, the other way: DPO from an SFT adapter, with a frozen copy of it as the reference."""

    base: BaseSection
    chat: ChatSection = ChatSection()
    parents: ParentsSection
    data: tuple[Source, ...] = Field(min_length=1)
    pairs: Pairing = "best-worst"
    """Which (chosen, rejected) pairs a ranking gives. best-worst: its first best against its last worst response.
    best-random: its first best against one of the worse ones, drawn by the seed (Tunstall et al. 2023, Zephyr,
    arXiv:2310.16944), so that near misses are seen too. all: every pair."""
    evaluation: EvaluationSection
    limits: LimitsSection = LimitsSection()
    trl: DpoArguments = Field(default_factory=DpoArguments, validate_default=True)
    """TRL's DPOConfig, as it is."""
    track: TrackSection = TrackSection()
    checkpoint: CheckpointSection = CheckpointSection()
    seed: int = 0
    out: UserPath = Path("runs/dpo/dpo")

    @model_validator(mode="after")
    def _rows_fit(self) -> "DpoRecipe":
        longest = self.limits.prompt_tokens + self.limits.response_tokens
        rows = self.trl.arguments()["max_length"]
        if rows is not None and longest > rows:
            raise ValueError(
                f"limits.prompt_tokens + limits.response_tokens = {longest} must fit in trl.max_length={rows}: "
                "responses cut in the middle would be compared without their ends. Raise trl.max_length"
            )
        return self

    @model_validator(mode="after")
    def _every_option_has_its_effect(self) -> "DpoRecipe":
        """TRL takes these and does nothing with them."""
        given = self.trl.arguments()
        losses = given.get("loss_type") or ["sigmoid"]
        losses = {losses} if isinstance(losses, str) else set(losses)
        if given.get("label_smoothing") and not losses & SMOOTHED:
            raise ValueError(
                f"trl.label_smoothing is read by trl.loss_type {', '.join(sorted(SMOOTHED))} only, found "
                f"{', '.join(sorted(losses))}. For labels that may be wrong take trl.loss_type=robust"
            )
        for key in ("label_smoothing_factor", "padding_free"):
            if given.get(key):
                raise ValueError(f"trl.{key} has no effect in DPO. Remove it")
        return self
