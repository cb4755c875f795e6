"""What the recipe fixes for every step of a run, worked out once, with the functions that it names loaded."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor

from onebase.custom.functions import load_function
from onebase.inference.sampling import Engine, sample
from onebase.inference.scoring import member_names
from ppo.engines import CustomEngine
from ppo.maths.losses import token_weights
from ppo.recipe.recipe import PpoRecipe, SamplingSection
from ppo.recipe.reward import KlSection
from ppo.recipe.training import AdvantagesSection, TrainSection, ValueSection
from ppo.scores import ARGUMENTS, TERMS, Reward


@dataclass(frozen=True, kw_only=True)
class Method:
    """How a step rolls out, scores and learns."""

    sampling: SamplingSection
    engine: Engine
    """What draws the responses."""
    reward: Reward
    kl: KlSection
    advantages: AdvantagesSection
    standardises: bool
    """Whether advantages are standardised."""
    value: ValueSection
    value_role: str | None
    """The role that predicts values: `value`, `policy` with a head on its trunk, or None without any."""
    train: TrainSection
    weigh: Callable[[Tensor], Tensor]
    """Computes from the mask of a mini-batch the weight of each token in its loss."""


def method_of(recipe: PpoRecipe) -> Method:
    """RecipeError where a function that the recipe names cannot be loaded or called."""
    sampling, seconds = recipe.sampling, recipe.functions.seconds
    engine = (
        sample
        if sampling.engine is None
        else CustomEngine(load_function(sampling.engine, "sampling.engine"), sampling.engine, seconds)
    )
    sources = [
        term.combine.combination if term.function is None else load_function(term.function, TERMS, takes=ARGUMENTS)
        for term in recipe.reward.terms
    ]
    return Method(
        sampling=sampling,
        engine=engine,
        reward=Reward(
            section=recipe.reward,
            models=member_names(len(recipe.parents.rewards)),
            terms=dict(zip(recipe.reward.names, sources, strict=True)),
            limit=sampling.max_new_tokens,
            seconds=seconds,
        ),
        kl=recipe.kl,
        advantages=recipe.advantages,
        standardises=recipe.standardises_advantages,
        value=recipe.value,
        value_role=recipe.value_role,
        train=recipe.train,
        weigh=partial(token_weights, aggregation=recipe.aggregation, limit=sampling.max_new_tokens),
    )
