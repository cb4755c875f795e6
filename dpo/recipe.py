"""What a DPO recipe may say: `recipes/demo/rivals/dpo.yaml` is an example."""

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field, model_validator
from trl.trainer.dpo_config import DPOConfig

from data.select.sources import Source
from onebase.files.paths import UserPath
from onebase.recipe.sections import (
    BaseSection,
    ChatSection,
    CheckpointSection,
    Count,
    LimitsSection,
    Section,
    Seed,
    TrackSection,
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


class ParentsSection(Section):
    """The finished stage with the adapter that this one starts from, and is held to."""

    sft: UserPath


class EvaluationSection(Section):
    """Held-out rankings: what `dpo/eval_loss` and `dpo/eval_accuracy` are measured on, before and after."""

    rankings: tuple[Source, ...] = Field(min_length=1)
    samples: Count = 8
    """Held-out prompts answered at the end, for a person to read."""


class DpoRecipe(Section):
    """Stage 3, the other way: DPO from an SFT adapter, with a frozen copy of it as the reference."""

    base: BaseSection
    chat: ChatSection = ChatSection()
    parents: ParentsSection
    data: tuple[Source, ...] = Field(min_length=1)
    pairs: Pairing = "best-worst"
    """Which (chosen, rejected) pairs a ranking gives.

    best-worst: its first best against its last worst response.

    best-random: its first best against one of the worse ones, drawn by the seed. Near misses are seen too (Tunstall et
    al. 2023, Zephyr, arXiv:2310.16944).

    all: every pair.
    """
    evaluation: EvaluationSection
    limits: LimitsSection = LimitsSection()
    trl: DpoArguments = Field(default_factory=DpoArguments, validate_default=True)
    """TRL's DPOConfig, as it is."""
    track: TrackSection = TrackSection()
    checkpoint: CheckpointSection = CheckpointSection()
    seed: Seed = 0
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
    def _every_option_is_known(self) -> "DpoRecipe":
        """TRL finds some of these at the first batch only."""
        wanted = self.trl.arguments()
        require_one_of("loss_type", wanted, LOSSES)
        require_one_of("f_divergence_type", wanted, DIVERGENCES)
        require_one_of("truncation_mode", wanted, ("keep_start", "keep_end"))
        weights, losses = wanted.get("loss_weights"), wanted.get("loss_type") or ["sigmoid"]
        if weights is not None and len(weights) != (1 if isinstance(losses, str) else len(losses)):
            raise ValueError(f"trl.loss_weights: expected one for each loss of trl.loss_type, found {weights}")
        if "exo_pair" in losses and not wanted.get("label_smoothing"):
            raise ValueError("trl.loss_type=exo_pair needs trl.label_smoothing over 0, such as 1e-3")
        named = {losses} if isinstance(losses, str) else set(losses)
        if (wanted.get("f_divergence_type") or "reverse_kl") != "reverse_kl" and not named <= GENERALISED:
            raise ValueError(
                f"trl.f_divergence_type goes with trl.loss_type {', '.join(sorted(GENERALISED))} only, found "
                f"{', '.join(sorted(named))}"
            )
        if wanted.get("use_weighting") and named & {"aot", "aot_unpaired"}:
            raise ValueError("trl.use_weighting: TRL has it for all values of trl.loss_type but aot and aot_unpaired")
        if "robust" in losses and not 0 <= (wanted.get("label_smoothing") or 0) < 0.5:
            raise ValueError(
                f"trl.label_smoothing: expected 0 or more and less than 0.5, found {wanted['label_smoothing']}"
            )
        return self

    @model_validator(mode="after")
    def _every_option_has_its_effect(self) -> "DpoRecipe":
        """TRL takes these and does nothing with them."""
        block = self.trl.arguments()
        losses = block.get("loss_type") or ["sigmoid"]
        losses = {losses} if isinstance(losses, str) else set(losses)
        if block.get("label_smoothing") and not losses & SMOOTHED:
            raise ValueError(
                f"trl.label_smoothing is read by trl.loss_type {', '.join(sorted(SMOOTHED))} only, found "
                f"{', '.join(sorted(losses))}. For labels that may be wrong take trl.loss_type=robust"
            )
        for key in ("label_smoothing_factor", "padding_free"):
            if block.get(key):
                raise ValueError(f"trl.{key} has no effect in DPO. Remove it")
        return self
