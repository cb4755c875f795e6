"""The keys of a DPO recipe: `recipes/demo/rivals/dpo.yaml` is an example."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator
from trl.trainer.dpo_config import DPOConfig

from data.select.sources import Source
from onebase.files.paths import UserPath
from onebase.recipe.sections import (
    Count,
    Section,
    SftParentSection,
    StageRecipe,
)
from onebase.trl.arguments import TrlSection, require_one_of, trl_section

if TYPE_CHECKING:
    DpoArguments = TrlSection
else:
    DpoArguments = trl_section(
        DPOConfig, defaults={"learning_rate": 5e-5, "num_train_epochs": 1, "max_length": 1024, "beta": 0.1}
    )


SMOOTHED = {"aot", "aot_unpaired", "exo_pair", "robust"}
"""TRL's losses that read `label_smoothing`."""

LOSSES = (
    *("sigmoid", "hinge", "ipo", "exo_pair", "nca_pair", "robust", "bco_pair", "sppo_hard", "aot", "aot_unpaired"),
    *("apo_zero", "apo_down", "discopop", "sft", "sigmoid_norm"),
)
"""Those that TRL's DPO trainer knows."""

DIVERGENCES = ("reverse_kl", "forward_kl", "js_divergence", "alpha_divergence")
"""Values of `trl.f_divergence_type`."""

GENERALISED = {"sigmoid", "sigmoid_norm", "hinge", "ipo", "exo_pair", "robust", "discopop", "sft"}
"""Losses that are defined for other divergences than reverse KL."""

Pairing = Literal["best-worst", "best-random", "all"]


class EvaluationSection(Section):
    """Held-out rankings: what `dpo/eval_loss` and `dpo/eval_accuracy` are measured on, before and after."""

    rankings: tuple[Source, ...] = Field(min_length=1)
    samples: Count = 8
    """Held-out prompts answered at the end, for a person to read."""


class DpoRecipe(StageRecipe):
    """Stage 3, the other way: DPO from an SFT adapter, with a frozen copy of it as the reference."""

    parents: SftParentSection
    data: tuple[Source, ...] = Field(min_length=1)
    pairs: Pairing = "best-worst"
    """Which (chosen, rejected) pairs a ranking gives.

    best-worst: its first best against its last worst response.

    best-random: its first best against one of the worse ones, drawn by the seed. Near misses are seen too (Tunstall et
    al. 2023, Zephyr, arXiv:2310.16944).

    all: every pair.
    """
    evaluation: EvaluationSection
    trl: DpoArguments = Field(default_factory=DpoArguments, validate_default=True)
    """TRL's DPOConfig, as it is."""
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
    def _every_option_is_known_and_has_its_effect(self) -> "DpoRecipe":
        """TRL finds some of these at the first batch only, and does nothing with others."""
        block = self.trl.arguments()
        require_one_of("loss_type", block, LOSSES)
        require_one_of("f_divergence_type", block, DIVERGENCES)
        require_one_of("truncation_mode", block, ("keep_start", "keep_end"))
        losses = block.get("loss_type") or ["sigmoid"]
        losses = [losses] if isinstance(losses, str) else losses
        weights, smoothing, named = block.get("loss_weights"), block.get("label_smoothing"), ", ".join(sorted(losses))
        divergence = block.get("f_divergence_type") or "reverse_kl"
        problems = {
            f"trl.loss_weights: expected one for each loss of trl.loss_type, found {weights}": (
                weights is not None and len(weights) != len(losses)
            ),
            "trl.loss_type=exo_pair needs trl.label_smoothing over 0, such as 1e-3": (
                "exo_pair" in losses and not smoothing
            ),
            f"trl.f_divergence_type goes with trl.loss_type {', '.join(sorted(GENERALISED))} only, found {named}": (
                divergence != "reverse_kl" and not GENERALISED.issuperset(losses)
            ),
            "trl.use_weighting: TRL has it for all values of trl.loss_type but aot and aot_unpaired": (
                block.get("use_weighting") and not {"aot", "aot_unpaired"}.isdisjoint(losses)
            ),
            f"trl.label_smoothing: expected 0 or more and less than 0.5, found {smoothing}": (
                "robust" in losses and not 0 <= (smoothing or 0) < 0.5
            ),
            f"trl.label_smoothing is read by trl.loss_type {', '.join(sorted(SMOOTHED))} only, found {named}. "
            "For labels that may be wrong take trl.loss_type=robust": smoothing and SMOOTHED.isdisjoint(losses),
            "trl.label_smoothing_factor has no effect in DPO. Remove it": block.get("label_smoothing_factor"),
            "trl.padding_free has no effect in DPO. Remove it": block.get("padding_free"),
        }
        for problem, present in problems.items():
            if present:
                raise ValueError(problem)
        return self
