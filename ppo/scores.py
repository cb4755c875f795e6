"""The score of an episode: reward models and Python functions, each times its weight.

A function gets the prompt as it was read and the response as a person reads it:

    from data.records import Prompt

    def reward(prompt: Prompt, response: str) -> float: ...

It is called once an episode, and may use anything: a checker, a compiler, `prompt.meta`. It must be a function of its
arguments alone, or a killed run would not resume to the same bits.
"""

import copy
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from data.chat.conversations import Chat, EncodedPrompt
from data.records import Prompt, conversation_of
from onebase.custom.custom_calls import CallError, call, text_of
from onebase.errors import CodeError, InputError
from onebase.inference.scoring import member_scores
from onebase.model.roles import Roles
from onebase.seeding import stream
from onebase.sequences.episodes import Episodes
from ppo.maths.rewards import ScoreMoments, overlong_penalty, penalise_unfinished
from ppo.recipe.reward import RewardSection
from ppo.recipe.steering import SECONDS

RewardFunction = Callable[[Prompt, str], Any]
"""A function of the prompt and the response; its result should be a number, and is not trusted to be one."""

TERMS = "reward.terms"
"""The recipe's key of what a score is made of."""

ARGUMENTS = ("prompt", "response")
"""What a reward function, or a judge, is called with."""

LARGEST = torch.finfo(torch.float32).max
"""Largest number that a score may be: scores are fp32."""

LARGEST_TERM = 1e9
"""Bound of a term times its weight. Gradients are some thousand times as large at most. Their norm sums millions of
squares, and fp32 holds up to 3e38."""

LOOK = "Look at report.json in its stage folder, and whether the base overflows in half precision."
FIX = "Fix the function."
NUMBER = " where a finite number is expected"
TOO_LARGE = (
    f"A score beyond {LARGEST_TERM:g} overflows in fp32 where the value function and the gradients square it. Give "
    "smaller scores, lower reward.terms.{index}.weight, or set reward.clip."
)


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
class Reward:
    """What an episode is scored by."""

    section: RewardSection
    models: tuple[str, ...]
    """Roles of the reward models."""
    terms: Mapping[str, Callable[..., Any]]
    """By the name of each term of the section: what makes one score of the models', or the function that scores."""
    limit: int
    """Tokens that a response can have."""
    seconds: float = SECONDS
    """Longest time of one call of a function."""


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
    roles: Roles, episodes: Episodes, batch: PromptBatch, reward: Reward, *, tokens_per_microbatch: int
) -> EpisodeScores:
    """Score each episode by reward models and functions; RewardError where a score cannot be trained on."""
    section, members = reward.section, dict[str, Tensor]()
    if reward.models:
        # Reward models see the sampled tokens, closed as the responses of rankings are.
        sequences = batch.chat.closed(episodes.sequences)
        rows = member_scores(roles, reward.models, sequences, tokens_per_microbatch=tokens_per_microbatch)
        members = dict(zip(reward.models, rows, strict=True))
    for name, scores in members.items():
        refuse(~scores.isfinite(), scores, f"the reward model '{name}' scores", NUMBER, LOOK, episodes, batch)
    terms, total = dict[str, Tensor](), torch.zeros(len(episodes))
    for index, (term, (name, source)) in enumerate(zip(section.terms, reward.terms.items(), strict=True)):
        if term.function is None:
            what, scores = "the reward model", source(torch.stack(list(members.values())))
        else:
            what = f"the reward function '{term.function}'"
            scores = scores_of(source, term.function, episodes, batch, seconds=reward.seconds)
        weighted = term.weight * scores
        if section.clip is None and not section.whiten:
            # Else the gradient would not be finite, and no error would name the score as the cause.
            begin, weight = f"{TERMS}.{index} '{name}': {what} scores", f", times its weight {term.weight:g}"
            do = TOO_LARGE.format(index=index)
            refuse(weighted.abs() > LARGEST_TERM, scores, begin, weight, do, episodes, batch)
        terms[name] = scores
        total = total + weighted
    refuse(~total.isfinite(), total, f"the sum of {TERMS} is", NUMBER, "Lower the weights.", episodes, batch)
    return EpisodeScores(total=total, terms=terms, members=members)


def refuse(
    bad: Bool[Tensor, " B"],
    scores: Float[Tensor, " B"],
    what: str,
    why: str,
    do: str,
    episodes: Episodes,
    batch: PromptBatch,
) -> None:
    """RewardError at the first bad score. what, why: how the error begins, before and after the score; do: its end."""
    for row in bad.nonzero().flatten().tolist():
        raise RewardError(f"{what} {scores[row].item():.4g}{why}, {batch.describe(row, episodes)}. {do}")


def shape_scores(
    scores: Float[Tensor, " B"],
    stopped: Bool[Tensor, " B"],
    lengths: Float[Tensor, " B"],
    reward: Reward,
    moments: ScoreMoments,
) -> Float[Tensor, " B"]:
    """Scores as they are rewarded: whitened, clipped, minus the penalties for being cut and for length.

    Evaluation chooses `best/` by their mean on held-out prompts. lengths: tokens of the responses. moments: of the
    scores of the run, these included.
    """
    section = reward.section
    if section.whiten:
        scores = moments.standardise(scores)
    if section.clip is not None:
        scores = scores.clamp(-section.clip, section.clip)
    if section.overlong is not None:
        penalty = overlong_penalty(lengths, limit=reward.limit, buffer=section.overlong.buffer)
        scores = scores - section.overlong.weight * penalty
    return penalise_unfinished(scores, stopped, penalty=section.eos_penalty)


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
            raise FunctionError(f"{what} '{name}' returned {text}{NUMBER}, {batch.describe(row, episodes)}. {FIX}")
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
