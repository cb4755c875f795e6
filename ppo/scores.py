"""The score of an episode: reward models and Python functions, each times its weight.

A function gets the prompt as it was read and the response as a person reads it:

    from data.records import Prompt

    def reward(prompt: Prompt, response: str) -> float: ...

It is called once an episode, and may use anything: a checker, a compiler, `prompt.meta`. It must be a function of its
arguments alone, or a killed run would not resume to the same bits.
"""

import copy
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from data.chat.conversations import Chat, EncodedPrompt
from data.records import Prompt, conversation_of
from onebase.custom.custom_calls import CallError, call, text_of
from onebase.custom.functions import load_function
from onebase.errors import CodeError, InputError
from onebase.inference.scoring import member_scores
from onebase.model.roles import Roles
from onebase.seeding import stream
from onebase.sequences.episodes import Episodes
from ppo.maths.rewards import ScoreMoments, overlong_penalty, penalise_unfinished
from ppo.recipe.reward import RewardSection, RewardTerm
from ppo.recipe.steering import SECONDS

RewardFunction = Callable[[Prompt, str], Any]
"""Of the prompt and the response; its result should be a number, and is not trusted to be one."""

TERMS = "reward.terms"
"""The recipe's key of what a score is made of."""

ARGUMENTS = ("prompt", "response")
"""What a reward function, or a judge, is called with."""

LARGEST = torch.finfo(torch.float32).max
"""Of the numbers that a score may be: scores are fp32."""

LARGEST_TERM = 1e9
"""Bound of a term times its weight. Gradients are some thousand times as large at most. Their norm sums millions of
squares, and fp32 holds up to 3e38."""

LOOK = "Look at report.json in its stage folder, and whether the base overflows in half precision."
FIX = "Fix the function."


class RewardError(InputError):
    """A reward that cannot be used."""


class FunctionError(RewardError, CodeError):
    """A reward function that fails or returns no number."""


@dataclass(frozen=True, kw_only=True)
class PromptBatch:
    """The prompts of a batch of episodes, in their order, and how tokens become text."""

    chat: Chat
    prompts: Sequence[EncodedPrompt]

    def response(self, row: int, episodes: Episodes) -> str:
        """As a person reads it."""
        return self.chat.text(episodes.responses[row][episodes.mask[row]].tolist())

    def describe(self, row: int, episodes: Episodes) -> str:
        """An episode in the words of an error."""
        prompt, response = self.prompts[row].prompt, self.response(row, episodes)
        return f"for the prompt {prompt.origin} ({prompt.user_text!r}) and the response {response!r}"


@dataclass(frozen=True, kw_only=True)
class EpisodeScores:
    """Scores of B episodes, before whitening, clipping and penalties."""

    total: Float[Tensor, " B"]
    """The sum of the terms, each times its weight."""
    terms: dict[str, Float[Tensor, " B"]]
    """Each term by its name, unweighted."""
    members: dict[str, Float[Tensor, " B"]]
    """The score of each reward model by its role, unweighted."""


def score_episodes(
    roles: Roles,
    episodes: Episodes,
    batch: PromptBatch,
    reward: RewardSection,
    *,
    models: Sequence[str],
    tokens_per_microbatch: int,
    seconds: float = SECONDS,
) -> EpisodeScores:
    """Score each episode by reward models and functions.

    models: roles of the reward models. seconds: longest time of one call of a function.
    """
    members: dict[str, Tensor] = {}
    if models:
        # Reward models see the sampled tokens, closed as the responses of rankings are.
        sequences = batch.chat.closed(episodes.sequences)
        rows = member_scores(roles, models, sequences, tokens_per_microbatch=tokens_per_microbatch)
        members = dict(zip(models, rows, strict=True))
        for name, scores in members.items():
            require_finite(scores, f"the reward model '{name}' scores", episodes, batch, LOOK)
    terms: dict[str, Tensor] = {}
    total = torch.zeros(len(episodes))
    for index, term in enumerate(reward.terms):
        if term.function is None:
            scores = term.combine.combination(torch.stack(list(members.values())))
        else:
            function = load_function(term.function, TERMS)
            scores = scores_of(function, term.function, episodes, batch, seconds=seconds)
        if reward.clip is None and not reward.whiten:
            require_bounded(term.weight * scores, index, term, episodes, batch)
        terms[term.named(index)] = scores
        total = total + term.weight * scores
    require_finite(total, f"the sum of {TERMS} is", episodes, batch, "Lower the weights.")
    return EpisodeScores(total=total, terms=terms, members=members)


def shape_scores(
    scores: Float[Tensor, " B"],
    stopped: Bool[Tensor, " B"],
    lengths: Float[Tensor, " B"],
    reward: RewardSection,
    *,
    limit: int,
    moments: ScoreMoments,
) -> Float[Tensor, " B"]:
    """Scores as they are rewarded: whitened, clipped, less the penalties for being cut and for length.

    Evaluation chooses `best/` by their mean on held-out prompts. lengths: tokens of the responses. limit: the most that
    a response can have. moments: of the scores of the run, these included.
    """
    if reward.whiten:
        scores = moments.standardise(scores)
    if reward.clip is not None:
        scores = scores.clamp(-reward.clip, reward.clip)
    if reward.overlong is not None:
        penalty = overlong_penalty(lengths, limit=limit, buffer=reward.overlong.buffer)
        scores = scores - reward.overlong.weight * penalty
    return penalise_unfinished(scores, stopped, penalty=reward.eos_penalty)


def scores_of(
    function: RewardFunction,
    name: str,
    episodes: Episodes,
    batch: PromptBatch,
    *,
    what: str = "reward function",
    seconds: float = SECONDS,
) -> Float[Tensor, " B"]:
    """The number that a function returns for each response; FunctionError, naming the episode, if it is not finite.

    name, what: how errors call the function. seconds: how long one call may take.

    The function gets a copy of the prompt, and the global generators begin where prompt and response say
    (`onebase.custom.custom_calls`): what it does with either is gone when the next one is called.
    """
    scores: list[float] = []
    for row, encoded in enumerate(batch.prompts):
        response = batch.response(row, episodes)

        def answer(prompt: Prompt = encoded.prompt, response: str = response) -> tuple[float | None, str]:
            value = function(copy.deepcopy(prompt), response)
            number = as_number(value)
            return number, "" if number is not None else text_of(value)

        try:
            number, text = call(
                answer, function, seconds=seconds, seed=stream(0, conversation_of(encoded.prompt), response)
            )
        except CallError as error:
            raise FunctionError(f"{what} '{name}' {error}, {batch.describe(row, episodes)}. {FIX}") from error
        if number is None:
            raise FunctionError(
                f"{what} '{name}' returned {text} where a finite number is expected, "
                f"{batch.describe(row, episodes)}. {FIX}"
            )
        scores.append(number)
    return torch.tensor(scores)


def as_number(value: object) -> float | None:
    """The value as a number that fp32 can hold, or None. bool is a number in Python, and checkers return it."""
    if inspect.iscoroutine(value):
        value.close()  # else Python warns that nobody has waited for it
    try:
        number: object = value.item() if hasattr(value, "item") else value  # type: ignore[union-attr]  # numpy, torch
    except (ValueError, RuntimeError):  # several numbers
        return None
    # NaN compares with nothing.
    return float(number) if isinstance(number, int | float) and -LARGEST <= number <= LARGEST else None


def require_finite(scores: Float[Tensor, " B"], what: str, episodes: Episodes, batch: PromptBatch, do: str) -> None:
    """Refuse scores that are not finite: an update cannot use them. what, do: how the error begins and ends."""
    for row in (~scores.isfinite()).nonzero().flatten().tolist():
        raise RewardError(
            f"{what} {scores[row].item()} where a finite number is expected, {batch.describe(row, episodes)}. {do}"
        )


def require_bounded(
    part: Float[Tensor, " B"], index: int, term: RewardTerm, episodes: Episodes, batch: PromptBatch
) -> None:
    """Refuse a term, times its weight, that would overflow in training: the gradient would not be finite, and no error
    would name the score as the cause."""
    for row in (part.abs() > LARGEST_TERM).nonzero().flatten().tolist():
        what = "the reward model" if term.function is None else f"the reward function '{term.function}'"
        score = part[row].item() / term.weight
        raise RewardError(
            f"reward.terms.{index} '{term.named(index)}': {what} scores {score:.4g}, times its weight "
            f"{term.weight:g}, {batch.describe(row, episodes)}. A score beyond {LARGEST_TERM:g} overflows in fp32 "
            "where the value function and the gradients square it. Give smaller scores, lower "
            f"reward.terms.{index}.weight, or set reward.clip."
        )
