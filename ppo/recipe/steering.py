"""The keys of a PPO recipe for watching and steering the run: docs/steering.md tells what each part is for."""

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
    """Texts or demonstrations to measure the loss of the policy on: how much PPO damages the language model."""
    judge: Annotated[str, Field(pattern=DOTTED)] | None = None
    """package.module:name of a function of (Prompt, response text) that returns a number, as those of `reward.terms`.
    It measures what the reward should measure, if prompts have no check. The alarm uses it."""
    text_tokens: Count = 256
    """Tokens of a piece into which longer texts are cut."""
    every: Count = 10
    """Steps between two evaluations; there is one before the first step and one after the last in any case."""
    kl_budget: PositiveFloat = 20.0
    """Largest KL of the best adapter, in nats per response."""


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
    """Tokens of a piece into which longer texts are cut."""


class AlarmsSection(Section):
    """When to say that a run goes wrong. None of these numbers changes what is trained."""

    window: Annotated[Count, Field(le=64)] = 10
    """Steps over which a number is averaged, at the start and now: single steps are noise."""
    kl: PositiveFloat = 30.0
    """Largest KL to the SFT policy, in nats per response."""
    ratio: float = Field(default=10.0, gt=1)
    """Largest ratio of new to old probability of a token, within one update."""
    check_fall: PositiveFloat = 0.05
    """How far the held-out task score may be below its best value, while the reward rises; with `evaluation.judge` how
    far the judge's number may be, in its units."""
    stop: bool = False
    """Whether an alarm ends the run."""


SECONDS = 600.0
"""What a call of a custom function may take by default."""


class FunctionsSection(Section):
    """Limits of custom functions: those of `reward.terms`, the judge, and the sampling engine."""

    seconds: float = Field(default=SECONDS, gt=0, le=1e7)
    """Longest time of a call, which is one episode; an engine, which draws many at once, has it for each of them."""
