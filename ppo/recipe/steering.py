"""What a PPO recipe may say about watching and steering the run: docs/steering.md tells what each part is for."""

from typing import Annotated

from pydantic import Field, PositiveFloat

from data.select.sources import Source
from data.select.texts import TextSource
from onebase.custom.functions import DOTTED
from onebase.recipe.sections import Count, Section


class EvaluationSection(Section):
    """Held-out prompts, answered every few steps with the same random numbers."""

    prompts: tuple[Source, ...] = Field(min_length=1)
    """Sources of prompts that are not trained on."""
    texts: tuple[TextSource, ...] = ()
    """Texts or demonstrations to measure the loss of the policy on: what PPO costs the language model."""
    judge: Annotated[str, Field(pattern=DOTTED)] | None = None
    """package.module:name of a function of (Prompt, response text) that returns a number, as those of `reward.terms`:
    what the reward stands for, where prompts bring no check of their own. The alarm listens to it."""
    text_tokens: Count = 256
    """Tokens of a piece into which longer texts are cut."""
    every: Count = 10
    """Steps between two evaluations; there is one before the first step and one after the last in any case."""
    kl_budget: PositiveFloat = 20.0
    """Nats a response: what the best adapter may cost at most."""


class EmaSection(Section):
    """A moving average of the policy's weights, as a role of its own."""

    decay: float = Field(default=0.992, gt=0, lt=1)
    """Share of the old average that an optimiser step keeps; 0.992 is InstructGPT's."""


class PretrainingSection(Section):
    """PPO-ptx: the third term of InstructGPT's objective."""

    data: tuple[TextSource, ...] = Field(min_length=1)
    """Plain texts, or demonstrations, to keep the likelihood of."""
    weight: Annotated[PositiveFloat, Field(le=1e6)] = 1.0
    """gamma: of the mean loss of these texts' tokens, beside the policy's loss as train.aggregation has it."""
    examples_per_episode: PositiveFloat = 1.0
    """Pieces of text for an episode of a mini-batch; InstructGPT has 8."""
    tokens: Count = 256
    """Of a piece into which longer texts are cut."""


class AlarmsSection(Section):
    """When to say that a run goes wrong. None of these numbers changes what is trained."""

    window: Annotated[Count, Field(le=64)] = 10
    """Steps over which a number is averaged, at the start and now: single steps are noise."""
    kl: PositiveFloat = 30.0
    """Nats a response."""
    ratio: float = Field(default=10.0, gt=1)
    """Of new to old probability of a token, within one update."""
    check_fall: PositiveFloat = 0.05
    """By how much the held-out check may lie below its best, while the reward rises; of `evaluation.judge`, where there
    is one, in the judge's own units."""
    stop: bool = False
    """Whether an alarm ends the run."""


SECONDS = 600.0
"""What a call of a custom function may take by default."""


class FunctionsSection(Section):
    """Limits of custom functions: those of `reward.terms`, the judge, and the sampling engine."""

    seconds: float = Field(default=SECONDS, gt=0, le=1e7)
    """Longest time of a call, which is one episode; an engine, which draws many at once, has it for each of them."""
