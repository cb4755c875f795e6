"""Evaluation inside the run: the same held-out prompts, answered with the same random numbers every time.

Nothing here draws from a generator that training draws from, or writes to a role that learns: a run has the same bits
with and without it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from jaxtyping import Bool, Float
from torch import Tensor

from data.chat.conversations import Chat, EncodedPrompt, Limiter, encode_prompts
from data.records import Prompt
from data.select.contamination import require_apart
from data.select.room import require_pieces, require_room
from data.select.sources import load as load_records
from data.select.texts import Piece, load_pieces
from evaluation.compare.language import as_episodes, lm_loss
from evaluation.compare.responses import task_grades, texts
from onebase.custom.functions import load_function
from onebase.inference.sampling import sample
from onebase.inference.scoring import in_microbatches, kl_between, token_scores
from onebase.memory import Budget
from onebase.model import base as bases
from onebase.model.roles import Roles
from onebase.run.record import DataIdentity
from onebase.seeding import generator
from onebase.sequences.episodes import Episodes
from ppo.maths.rewards import ScoreMoments
from ppo.method import Method
from ppo.recipe.recipe import PpoRecipe
from ppo.scores import ARGUMENTS, PromptBatch, Reward, RewardFunction, score_episodes, scores_of, shape_scores
from ppo.steering.frontier import OBJECTIVE, Point
from ppo.steering.side_stages import weights_of

COLUMNS = ("role", "prompt", "response", "reward", "objective", "kl", "task_score", "judge")
"""Columns of the table of samples."""

JUDGE = "evaluation.judge"
"""The recipe's key of a custom function."""

SHOWN = 8
"""Prompts in the table of samples: the first, always the same."""


@dataclass(frozen=True, kw_only=True)
class HeldOutData:
    """What evaluation needs: read, and refused where it is wrong, before a weight is loaded."""

    chat: Chat
    prompts: list[EncodedPrompt]
    pieces: list[Piece]
    judge: tuple[RewardFunction, str] | None
    """The recipe's, and its name."""
    identities: list[DataIdentity]


@dataclass(frozen=True, kw_only=True)
class Answers:
    """What is rewarded of the answers to B held-out prompts."""

    scores: Float[Tensor, " B"]
    """The sum of the reward's terms, each times its weight."""
    stopped: Bool[Tensor, " B"]
    lengths: Float[Tensor, " B"]
    """Tokens."""

    def shaped(self, reward: Reward, moments: ScoreMoments) -> Float[Tensor, " B"]:
        """The very scores that PPO would reward these answers with. moments: of the scores of the run up to now.

            objective = mean over prompts of shape(reward)        shape: whitening, clip, less all penalties

        The price of the KL is not in it: `evaluation.kl_budget` bounds the KL of `best/`, and a price would count it
        twice.
        """
        return shape_scores(self.scores, self.stopped, self.lengths, reward, moments)


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One role at one step, what its objective is made of, and its weights."""

    point: Point
    answers: Answers
    weights: Sequence[Tensor] = ()
    """On the CPU."""
    rows: Sequence[list[Any]] = ()
    """Rows of the table of samples."""

    def on_scale(self, reward: Reward, moments: ScoreMoments) -> Point:
        """The point with the objective as it is with the present whitening: two answers compare on one scale only."""
        objective = float(self.answers.shaped(reward, moments).mean())
        return replace(self.point, metrics=self.point.metrics | {OBJECTIVE: objective})


def read_held_out(recipe: PpoRecipe, chat: Chat, training: Sequence[EncodedPrompt]) -> HeldOutData | None:
    """Prompts, texts and judge of the evaluation; DataError where a prompt is also trained on."""
    section = recipe.evaluation
    if section is None:
        return None
    name = section.judge
    judge = None if name is None else (load_function(name, JUDGE, takes=ARGUMENTS), name)
    loaded = load_records(section.prompts, Prompt, seed=recipe.seed)
    limiter = Limiter(recipe.limits)
    prompts = encode_prompts(chat, loaded.records, limiter)
    reach = bases.reach(recipe.base)
    require_room(prompts, reach, new_tokens=recipe.sampling.max_new_tokens)
    require_apart("evaluation.prompts", loaded.records, [prompt.prompt for prompt in training])
    pieces, identities = load_pieces(section.texts, chat, tokens=section.text_tokens, seed=recipe.seed)
    require_pieces(pieces, reach, key="evaluation.text_tokens")
    identities = [*loaded.identities, *limiter.settle("ppo, evaluation"), *identities]
    return HeldOutData(chat=chat, prompts=prompts, pieces=pieces, judge=judge, identities=identities)


def evaluate(
    roles: Roles,
    role: str,
    held_out: HeldOutData,
    method: Method,
    budget: Budget,
    moments: ScoreMoments,
    *,
    step: int,
    seed: int,
) -> Measurement:
    """Let a role answer the held-out prompts, and measure the answers. moments: of the scores of the run up to now.

    Metrics have no prefix: reward, and reward/NAME of each of several terms, unweighted; objective, kl,
    response_length, stop_rate, distinct_1, distinct_2, entropy; task_score, correctness and form where all prompts
    bring a check; judge where there is one; lm_loss where there are texts.
    """
    tokens, temperature = budget.tokens, method.sampling.temperature
    drawn = sample(
        roles,
        role,
        [prompt.ids for prompt in held_out.prompts],
        max_new_tokens=method.sampling.max_new_tokens,
        temperature=temperature,
        generator=generator(seed, "evaluation"),
        batch=budget.episodes,
    )
    episodes, mask = drawn.episodes, drawn.episodes.mask
    batch = PromptBatch(chat=held_out.chat, prompts=held_out.prompts)
    scores = score_episodes(roles, episodes, batch, method.reward, tokens_per_microbatch=tokens)
    rewards, terms = scores.total, scores.terms if len(scores.terms) > 1 else {}
    rewarded = Answers(scores=rewards, stopped=drawn.stopped, lengths=mask.sum(dim=1).float())
    shaped = rewarded.shaped(method.reward, moments)
    kl = kl_between(roles, role, "reference", episodes, temperature=temperature, tokens_per_microbatch=tokens)
    entropies = in_microbatches(
        roles, lambda part: token_scores(roles, role, part, temperature=temperature).entropies, episodes, tokens=tokens
    )
    answers = texts(held_out.chat, episodes)
    grades = task_grades(held_out.prompts, answers)
    metrics = {
        "reward": float(rewards.mean()),
        **{f"reward/{name}": float(term.mean()) for name, term in terms.items()},
        OBJECTIVE: float(shaped.mean()),
        "kl": float(kl.sum(dim=1).mean()),
        "response_length": float(mask.sum(dim=1).float().mean()),
        "stop_rate": float(drawn.stopped.float().mean()),
        "distinct_1": distinct(episodes, 1),
        "distinct_2": distinct(episodes, 2),
        "entropy": float(entropies.sum() / mask.sum()),
        **{name: sum(values) / len(values) for name, values in grades.items()},
    }
    judged = None
    if held_out.judge is not None:
        judged = scores_of(*held_out.judge, episodes, batch, what="judge", seconds=method.reward.seconds)
        metrics["judge"] = float(judged.mean())
    if held_out.pieces:
        metrics["lm_loss"] = lm_loss(roles, role, as_episodes(held_out.pieces, roles), tokens_per_microbatch=tokens)
    columns = (rewards, shaped, kl.sum(dim=1), grades.get("task_score"), judged)
    point, rows = Point(step=step, role=role, metrics=metrics), _rows(role, held_out, answers, columns)
    return Measurement(point=point, answers=rewarded, weights=weights_of(roles, role), rows=rows)


def _rows(
    role: str, held_out: HeldOutData, answers: Sequence[str], columns: Sequence[Sequence[float] | Tensor | None]
) -> list[list[Any]]:
    """Rows of the table of samples: the first prompts, always the same."""
    return [
        [role, held_out.prompts[row].prompt.user_text, answer, *(_rounded(column, row) for column in columns)]
        for row, answer in enumerate(answers[:SHOWN])
    ]


def _rounded(column: Sequence[float] | Tensor | None, row: int) -> float | None:
    return None if column is None else round(float(column[row]), 4)


def distinct(episodes: Episodes, n: int) -> float:
    """Distinct n-grams of response tokens over all of them (Li et al. 2016, https://arxiv.org/abs/1510.03055); 1 where
    no response has n tokens."""
    grams: list[tuple[int, ...]] = []
    for row, mask in zip(episodes.responses, episodes.mask, strict=True):
        tokens = row[mask].tolist()
        grams += [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0
