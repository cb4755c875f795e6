"""The keys of a recipe of instruction tuning: `recipes/demo/sft.yaml` is an example."""

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, model_validator
from trl.trainer.sft_config import SFTConfig

from data.select.sources import Source
from onebase.files.paths import UserPath
from onebase.recipe.sections import (
    AdapterSection,
    Count,
    Section,
    StageRecipe,
)
from onebase.trl.arguments import TrlSection, require_one_of, trl_section

if TYPE_CHECKING:
    SftArguments = TrlSection
else:
    SftArguments = trl_section(
        SFTConfig,
        defaults={
            "learning_rate": 2e-4,
            "num_train_epochs": 1,
            "max_length": 1024,
        },
    )
    # `packing` has no default: several demonstrations share a row, each attending to itself only, where the model can
    # (`sft.packing`), so that no padding goes through it.

LOSSES = ("nll", "dft", "chunked_nll")
"""Those that TRL's SFT trainer knows."""


class EvaluationSection(Section):
    """Held-out demonstrations: what `sft/eval_loss` is measured on, before and after."""

    demonstrations: tuple[Source, ...] = Field(min_length=1)
    samples: Count = 8
    """Held-out prompts answered at the end, for a person to read."""


class SftRecipe(StageRecipe):
    """Stage 1: instruction tuning with a LoRA adapter on a frozen, usually quantised base (QLoRA)."""

    adapter: AdapterSection = AdapterSection()
    data: tuple[Source, ...] = Field(min_length=1)
    evaluation: EvaluationSection
    trl: SftArguments = Field(default_factory=SftArguments, validate_default=True)
    """TRL's SFTConfig, as it is."""
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

    @model_validator(mode="after")
    def _every_option_can_be_done(self) -> "SftRecipe":
        wanted = self.trl.arguments()
        require_one_of("loss_type", wanted, LOSSES)
        require_one_of("truncation_mode", wanted, ("keep_start", "keep_end"))
        if wanted.get("packing_strategy", "bfd") not in ("bfd", "bfd_split"):
            raise ValueError(
                f"trl.packing_strategy={wanted['packing_strategy']}: expected 'bfd'. Others cut demonstrations in the "
                "middle and let them see each other. Leave the key out"
            )
        return self
