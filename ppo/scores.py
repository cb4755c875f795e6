"""What an episode's score is made of: reward models and Python functions, each by its weight.

A function gets the prompt as it was read and the response as a person reads it:

    from data.records import Prompt

    def reward(prompt: Prompt, response: str) -> float: ...

It is called once an episode, and may use anything: a checker, a compiler, `prompt.meta`. It must be a function of its
arguments alone, or a run that is killed would not go on to the same bits.
"""

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from data.chat.conversations import Chat, EncodedPrompt
from data.records import Prompt, conversation_of
from onebase.custom.custom_calls import CallError, call, text_of
from onebase.custom.functions import load_function
from onebase.errors import CodeError, InputError
from onebase.inference.ensemble import member_names, member_scores
from onebase.model.roles import Roles
from onebase.seeding import stream
from onebase.sequences.episodes import Episodes, TokenIds
from ppo.recipe.recipe import PpoRecipe
from ppo.recipe.reward import RewardTerm
from ppo.recipe.steering import SECONDS

RewardFunction = Callable[[Prompt, str], Any]
"""Of the prompt and the response; its result should be a number, and is not trusted to be one."""

TERMS = "reward.terms"
"""The recipe's key of what a score is made of."""

ARGUMENTS = ("prompt", "response")
"""What a reward function, or a judge, is called with."""

LARGEST = torch.finfo(torch.float32).max
"""Of the numbers that a score may be: scores are fp32."""

MOST = 1e9
"""Of a term times its weight: gradients are some thousand times as large at most, and their norm is the root of a sum
of millions of squares, which fp32 holds up to 3e38."""

LOOK = "Look at report.json in its stage folder, and whether the base overflows in half precision."
MEND = "Mend the function."


class RewardError(InputError):
    """A reward that is none."""


class FunctionError(RewardError, CodeError):
    """It is a function's."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    """The prompts of a batch of episodes, in their order, and how tokens become text."""

    chat: Chat
    prompts: Sequence[EncodedPrompt]

    def response(self, row: int, episodes: Episodes) -> str:
        """As a person reads it."""
        return self.chat.text(episodes.responses[row][episodes.mask[row]].tolist())

    def episode(self, row: int, episodes: Episodes) -> str:
        """What an error calls an episode."""
        prompt, response = self.prompts[row].prompt, self.response(row, episodes)
        return f"for the prompt {prompt.origin} ({prompt.user_text!r}) and the response {response!r}"


@dataclass(frozen=True, kw_only=True)
class Scored:
    """Scores of B episodes, before penalties."""

    total: Float[Tensor, " B"]
    terms: dict[str, Float[Tensor, " B"]]
    """Each term's own, by its name and before its weight."""
    members: dict[str, Float[Tensor, " B"]]
    """What each reward model says by itself, by role."""


def score_episodes(roles: Roles, episodes: Episodes, recipe: PpoRecipe, asked: Asked | None) -> Scored:
    """The sum of all terms, each times its weight. asked: needed where a term is a function."""
    members: dict[str, Tensor] = {}
    said = torch.zeros(0, len(episodes))
    if recipe.parents.rewards:
        names = member_names(len(recipe.parents.rewards))
        budget = recipe.train.tokens_per_microbatch
        said = member_scores(roles, names, rewarded_sequences(episodes, asked), tokens_per_microbatch=budget)
        members = dict(zip(names, said, strict=True))
        for name, scores in members.items():
            require_finite(scores, f"the reward model '{name}' scores", episodes, asked, LOOK)
    terms = {
        term.named(index): term.combine.combination(said)
        if term.function is None
        else scores_of(
            load_function(term.function, TERMS), term.function, episodes, asked, seconds=recipe.functions.seconds
        )
        for index, term in enumerate(recipe.reward.terms)
    }
    weights = [term.weight for term in recipe.reward.terms]
    parts = [weight * scores for weight, scores in zip(weights, terms.values(), strict=True)]
    total = sum(parts, start=torch.zeros(len(episodes)))
    if recipe.reward.clip is None and not recipe.reward.whiten:
        for index, part in enumerate(parts):
            require_bounded(part, index, recipe.reward.terms[index], episodes, asked)
    require_finite(total, f"the sum of {TERMS} is", episodes, asked, "Lower the weights.")
    return Scored(total=total, terms=terms, members=members)


def rewarded_sequences(episodes: Episodes, asked: Asked | None) -> list[TokenIds]:
    """What reward models look at: the sampled tokens, closed as rankings are where the chat format is known."""
    return episodes.sequences if asked is None else asked.chat.closed(episodes.sequences)


def scores_of(
    function: RewardFunction,
    name: str,
    episodes: Episodes,
    asked: Asked | None,
    *,
    what: str = "reward function",
    seconds: float = SECONDS,
) -> Float[Tensor, " B"]:
    """What a function says of each response; FunctionError naming the episode where that is no finite number.

    name, what: how errors call the function. seconds: how long one call may take.

    The function gets a copy of the prompt, and the global generators begin where prompt and response say
    (`onebase.custom.custom_calls`): what it does with either is gone when the next one is called.
    """
    assert asked is not None, "a function needs texts"
    scores: list[float] = []
    for row, one in enumerate(asked.prompts):
        response = asked.response(row, episodes)

        def answer(prompt: Prompt = one.prompt, response: str = response) -> tuple[float | None, str]:
            value = function(copy.deepcopy(prompt), response)
            number = as_number(value)
            return number, "" if number is not None else text_of(value)

        try:
            number, text = call(
                answer, function, seconds=seconds, seed=stream(0, conversation_of(one.prompt), response)
            )
        except CallError as error:
            raise FunctionError(f"{what} '{name}' {error}, {asked.episode(row, episodes)}. {MEND}") from error
        if number is None:
            raise FunctionError(
                f"{what} '{name}' returned {text} where a finite number is expected, "
                f"{asked.episode(row, episodes)}. {MEND}"
            )
        scores.append(number)
    return torch.tensor(scores)


def as_number(value: object) -> float | None:
    """A number that fp32 can hold, or None where it is none. bool is a number in Python, and what a checker returns."""
    if inspect.iscoroutine(value):
        value.close()  # else Python warns that nobody has waited for it
    try:
        number: object = value.item() if hasattr(value, "item") else value  # type: ignore[union-attr]  # numpy, torch
    except (ValueError, RuntimeError):  # several numbers
        return None
    # NaN compares with nothing.
    return float(number) if isinstance(number, int | float) and -LARGEST <= number <= LARGEST else None


def require_finite(scores: Float[Tensor, " B"], what: str, episodes: Episodes, asked: Asked | None, do: str) -> None:
    """Refuse scores that are no numbers: an update on them would be none. what, do: how the error begins and ends."""
    for row in (~scores.isfinite()).nonzero().flatten().tolist():
        episode = f"for row {row}" if asked is None else asked.episode(row, episodes)
        raise RewardError(f"{what} {scores[row].item()} where a finite number is expected, {episode}. {do}")


def require_bounded(
    part: Float[Tensor, " B"], index: int, term: RewardTerm, episodes: Episodes, asked: Asked | None
) -> None:
    """Refuse a term, times its weight, whose training would overflow: it would end as a gradient that is not finite,
    and nothing would say that a score is to blame."""
    for row in (part.abs() > MOST).nonzero().flatten().tolist():
        what = "the reward model" if term.function is None else f"the reward function '{term.function}'"
        score = part[row].item() / term.weight
        episode = f"for row {row}" if asked is None else asked.episode(row, episodes)
        raise RewardError(
            f"reward.terms.{index} '{term.named(index)}': {what} scores {score:.4g}, times its weight "
            f"{term.weight:g}, {episode}. A score beyond {MOST:g} overflows in fp32 where the value function and the "
            f"gradients square it. Give smaller scores, lower reward.terms.{index}.weight, or set reward.clip."
        )


def overlong_penalty(lengths: Float[Tensor, " B"], *, limit: int, buffer: int) -> Float[Tensor, " B"]:
    """How much of its penalty a response of so many tokens gets, from 0 up to limit - buffer to 1 at the limit.

        0                                   where |y| <= limit - buffer
        (|y| - (limit - buffer)) / buffer   up to the limit

    The soft overlong punishment of DAPO, Yu et al. 2025, https://arxiv.org/abs/2503.14476, eq. 13.
    """
    return ((lengths - (limit - buffer)) / buffer).clamp(min=0.0, max=1.0)
