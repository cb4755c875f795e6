"""What an episode's score is made of: reward models and Python functions, each by its weight.

A function gets the prompt as it was read and the response as a person reads it:

    from data.records import Prompt

    def reward(prompt: Prompt, response: str) -> float: ...

It is called once an episode, and may use anything: a checker, a compiler, `prompt.meta`. It must be a function of its
arguments alone, or a run that is killed would not go on to the same bits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from data.chat import Chat, EncodedPrompt
from data.records import Prompt
from onebase.ensemble import member_names, member_scores
from onebase.episodes import Episodes, TokenIds
from onebase.errors import InputError
from onebase.functions import load_function, place_of
from onebase.roles import Roles
from ppo.recipe import PpoRecipe

RewardFunction = Callable[[Prompt, str], Any]
"""Of the prompt and the response; its result should be a number, and is not trusted to be one."""

TERMS = "reward.terms"
"""The recipe's key of what a score is made of."""

ARGUMENTS = ("prompt", "response")
"""What a reward function, or a judge, is called with."""

LARGEST = torch.finfo(torch.float32).max
"""Of the numbers that a score may be: scores are fp32."""

LOOK = "Look at report.json in its stage folder, and whether the base overflows in half precision."
MEND = "Mend the function; the same command goes on from the last checkpoint."


class RewardError(InputError):
    """A reward that is none."""


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
        else scores_of(load_function(term.function, TERMS), term.function, episodes, asked)
        for index, term in enumerate(recipe.reward.terms)
    }
    weights = [term.weight for term in recipe.reward.terms]
    parts = [weight * scores for weight, scores in zip(weights, terms.values(), strict=True)]
    total = sum(parts, start=torch.zeros(len(episodes)))
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
) -> Float[Tensor, " B"]:
    """What a function says of each response; RewardError naming the episode where that is no finite number.

    name, what: how errors call the function.
    """
    assert asked is not None, "a function needs texts"
    found = []
    for row, one in enumerate(asked.prompts):
        response = asked.response(row, episodes)
        try:
            value = function(one.prompt, response)
        except Exception as error:  # whatever a user's function raises
            raise RewardError(
                f"{what} '{name}' raised {type(error).__name__} ({error}) at {place_of(error, function)}, "
                f"{asked.episode(row, episodes)}. {MEND}"
            ) from error
        number = as_number(value)
        if number is None:
            raise RewardError(
                f"{what} '{name}' returned {value!r} where a finite number is expected, "
                f"{asked.episode(row, episodes)}. {MEND}"
            )
        found.append(number)
    return torch.tensor(found)


def as_number(value: object) -> float | None:
    """A number that fp32 can hold, or None where it is none. bool is a number in Python, and what a checker returns."""
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


def overlong_penalty(lengths: Float[Tensor, " B"], *, limit: int, buffer: int) -> Float[Tensor, " B"]:
    """How much of its penalty a response of so many tokens gets, from 0 up to limit - buffer to 1 at the limit.

        0                                   where |y| <= limit - buffer
        (|y| - (limit - buffer)) / buffer   up to the limit

    The soft overlong punishment of DAPO, Yu et al. 2025, https://arxiv.org/abs/2503.14476, eq. 13.
    """
    return ((lengths - (limit - buffer)) / buffer).clamp(min=0.0, max=1.0)
