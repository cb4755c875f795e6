"""The recipe of a comparison: `recipes/demo/compare.yaml` is an example."""

import re
from pathlib import Path

from pydantic import Field, field_validator

from data.select.sources import Source
from data.select.texts import TextSource
from onebase.files.paths import UserPath
from onebase.recipe.sections import Count, RunRecipe, Section

POLICIES = ("sft", "ppo", "dpo")
"""Stages that train a policy, in the order of the tables. Further policies of the recipe follow."""


class ParentsSection(Section):
    """The finished stages to compare. A stage without a folder is left out of the tables."""

    sft: UserPath
    """The policy that KL is measured to."""
    reward: UserPath | None = None
    """The reward model that scores the responses."""
    ppo: UserPath | None = None
    dpo: UserPath | None = None


class SamplingSection(Section):
    """How responses are drawn."""

    max_new_tokens: Count = 64
    batch: Count = 32
    tokens_per_microbatch: Count = 2048


class CompareRecipe(RunRecipe):
    """Base, SFT, PPO and DPO on the same held-out prompts."""

    parents: ParentsSection
    policies: dict[str, UserPath] = Field(default_factory=dict)
    """Further policies under names of your choice: finished ppo or dpo stages from the same SFT stage, such as `best/`
    and `ema/`, and other SFT stages on the same base."""
    data: tuple[Source, ...] = Field(min_length=1)
    texts: tuple[TextSource, ...] = ()
    """Texts or demonstrations on which each model's loss is measured: how much tuning damages the language model."""
    text_tokens: Count = 256
    """Tokens of a piece into which longer texts are cut."""
    sampling: SamplingSection = SamplingSection()
    shown: Count = 3
    """Prompts printed below the tables with every model's answer."""
    out: UserPath = Path("runs/compare")
    """The run's folder: summary.json, lineage.json and evaluation/ are written there."""

    @field_validator("policies")
    @classmethod
    def _names_are_free(cls, policies: dict[str, Path]) -> dict[str, Path]:
        taken = sorted(
            {"base", "compare", "prompt", "source", "family", "step", *ParentsSection.model_fields} & set(policies)
        )
        if taken:
            raise ValueError(f"'{taken[0]}' is the name of another column or model of the tables. Choose another")
        odd = next((name for name in policies if not re.fullmatch(r"[A-Za-z0-9][\w-]*", name)), None)
        if odd is not None:
            raise ValueError(f"'{odd}': a name is made of letters, digits, _ and -. Choose another")
        return policies
