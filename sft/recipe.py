"""What a recipe of instruction tuning may say: `recipes/demo/sft.yaml` is an example."""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, PositiveInt, model_validator
from trl.trainer.sft_config import SFTConfig

from data.sources import Source
from onebase.checkpoint import CheckpointSection
from onebase.paths import UserPath
from onebase.recipes import AdapterSection, BaseSection, ChatSection, LimitsSection, Section, TrackSection
from onebase.trainers import TrlSection, trl_section

if TYPE_CHECKING:
    SftArguments = TrlSection
else:
    SftArguments = trl_section(
        SFTConfig,
        defaults={
            "learning_rate": 2e-4,
            "num_train_epochs": 1,
            "max_length": 1024,
            # Several demonstrations share a row, each attending to itself only: no padding goes through the model.
            "packing": True,
        },
    )


class EvaluationSection(Section):
    """Held-out demonstrations: what `sft/eval_loss` is measured on, before and after."""

    demonstrations: tuple[Source, ...] = Field(min_length=1)
    samples: PositiveInt = 8
    """Held-out prompts answered at the end, for a person to read."""


class SftRecipe(Section):
    """Stage 1: instruction tuning with a LoRA adapter on a frozen, usually quantised base (QLoRA)."""

    base: BaseSection
    chat: ChatSection = ChatSection()
    adapter: AdapterSection = AdapterSection()
    data: tuple[Source, ...] = Field(min_length=1)
    evaluation: EvaluationSection
    limits: LimitsSection = LimitsSection()
    trl: SftArguments = Field(default_factory=SftArguments, validate_default=True)
    """TRL's SFTConfig, as it is."""
    track: TrackSection = TrackSection()
    checkpoint: CheckpointSection = CheckpointSection()
    seed: int = 0
    out: UserPath = Path("runs/sft/sft")

    @model_validator(mode="after")
    def _rows_fit(self) -> "SftRecipe":
        longest = self.limits.prompt_tokens + self.limits.response_tokens
        rows = self.trl.arguments()["max_length"]
        if rows is None or longest > rows:
            raise ValueError(
                f"limits.prompt_tokens + limits.response_tokens = {longest} must fit in trl.max_length={rows}: "
                "a demonstration cut in the middle would never teach where to stop. Raise trl.max_length"
            )
        return self
