"""Evaluation inside the run: the same held-out prompts, answered with the same random numbers every time.

Nothing here draws from a generator that training draws from, or writes to a role that learns: a run has the same bits
with and without it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from data.chat.conversations import Chat, EncodedPrompt, Limiter, encode_prompts
from data.records import Prompt
from data.select.contamination import require_apart
from data.select.room import require_pieces, require_room
from data.select.sources import load as load_records
from data.select.texts import Piece, load_pieces
from evaluation.compare.grades import task_grades
from evaluation.compare.language import as_episodes, lm_loss
from evaluation.compare.responses import texts
from onebase.custom.functions import load_function
from onebase.inference.sampling import sample
from onebase.inference.scoring import in_microbatches, kl_between, token_scores
from onebase.model import base as bases
from onebase.model.roles import Roles
from onebase.run.record import DataIdentity
from onebase.seeding import generator
from onebase.sequences.episodes import Episodes
from ppo.maths.whitening import Seen
from ppo.recipe.recipe import PpoRecipe
from ppo.rollout import shape_scores
from ppo.scores import ARGUMENTS, Asked, score_episodes, scores_of
from ppo.steering.objective import OBJECTIVE, Answers

COLUMNS = ("role", "prompt", "response", "reward", "objective", "kl", "task_score", "judge")
"""Of the table of samples."""

JUDGE = "evaluation.judge"
"""The recipe's key of a function of one's own."""


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """What evaluation needs: read, and refused where it is wrong, before a weight is loaded."""

    chat: Chat
    prompts: list[EncodedPrompt]
    pieces: list[Piece]
    identities: list[DataIdentity]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """One role at one step."""

    metrics: dict[str, float]
    """Without prefix: reward, and reward/NAME of each of several terms, unweighted; objective, kl, response_length,
    stop_rate, distinct_1, distinct_2, entropy; task_score, correctness and form where all prompts bring a check; judge
    where there is one; lm_loss where there are texts."""
    answers: Answers
    """What the objective is made of."""
    rows: list[list[Any]]
    """Of the table of samples."""


def read_held_out(recipe: PpoRecipe, chat: Chat, training: Sequence[EncodedPrompt]) -> HeldOut | None:
    """Prompts, texts and judge of the evaluation; DataError where a prompt is also trained on."""
    section = recipe.evaluation
    if section is None:
        return None
    if section.judge is not None:
        load_function(section.judge, JUDGE, takes=ARGUMENTS)  # refused before a weight is loaded
    loaded = load_records(section.prompts, Prompt, seed=recipe.seed)
    limiter = Limiter(recipe.limits)
    prompts = encode_prompts(chat, loaded.records, limiter)
    reach = bases.reach(recipe.base)
    require_room(prompts, reach, new_tokens=recipe.sampling.max_new_tokens)
    require_apart("evaluation.prompts", loaded.records, [one.prompt for one in training])
    pieces, identities = load_pieces(section.texts, chat, tokens=section.text_tokens, seed=recipe.seed)
    require_pieces(pieces, reach, key="evaluation.text_tokens")
    identities = [*loaded.identities, *limiter.settle("ppo, evaluation"), *identities]
    return HeldOut(chat=chat, prompts=prompts, pieces=pieces, identities=identities)


def evaluate(roles: Roles, role: str, held_out: HeldOut, recipe: PpoRecipe, seen: Seen | None = None) -> Evaluation:
    """Let a role answer the held-out prompts, and measure the answers. seen: the scores of the run up to now, where
    they are whitened."""
    assert recipe.evaluation is not None, "the caller has asked for it"
    budget = recipe.train.tokens_per_microbatch
    temperature = recipe.evaluation.temperature or recipe.sampling.temperature
    drawn = sample(
        roles,
        role,
        [one.ids for one in held_out.prompts],
        max_new_tokens=recipe.sampling.max_new_tokens,
        temperature=temperature,
        generator=generator(recipe.seed, "evaluation"),
        batch=recipe.sampling.batch,
    )
    episodes, mask = drawn.episodes, drawn.episodes.mask
    asked = Asked(chat=held_out.chat, prompts=held_out.prompts)
    scored = score_episodes(roles, episodes, recipe, asked)
    rewards = scored.total
    given = Answers(scores=rewards, stopped=drawn.stopped, lengths=mask.sum(dim=1).float())
    shaped = shape_scores(given, recipe, seen)
    kl = kl_between(roles, role, "reference", episodes, temperature=temperature, tokens_per_microbatch=budget)
    entropies = in_microbatches(
        roles, lambda part: token_scores(roles, role, part, temperature=temperature).entropies, episodes, tokens=budget
    )
    answers = texts(held_out.chat, episodes)
    checks = task_grades(held_out.prompts, answers)
    metrics = {
        "reward": float(rewards.mean()),
        **(
            {f"reward/{name}": float(one.mean()) for name, one in scored.terms.items()} if len(scored.terms) > 1 else {}
        ),
        OBJECTIVE: float(shaped.mean()),
        "kl": float(kl.sum(dim=1).mean()),
        "response_length": float(mask.sum(dim=1).float().mean()),
        "stop_rate": float(drawn.stopped.float().mean()),
        "distinct_1": distinct(episodes, 1),
        "distinct_2": distinct(episodes, 2),
        "entropy": float(entropies.sum() / mask.sum()),
        **{name: sum(values) / len(values) for name, values in checks.items()},
    }
    judge, judged = recipe.evaluation.judge, None
    if judge is not None:
        function, seconds = load_function(judge, JUDGE), recipe.functions.seconds
        judged = scores_of(function, judge, episodes, asked, what="judge", seconds=seconds)
        metrics["judge"] = float(judged.mean())
    if held_out.pieces:
        metrics["lm_loss"] = lm_loss(roles, role, as_episodes(held_out.pieces, roles), tokens_per_microbatch=budget)
    rows = [
        [
            role,
            held_out.prompts[row].prompt.user_text,
            answers[row],
            round(float(rewards[row]), 4),
            round(float(shaped[row]), 4),
            round(float(kl[row].sum()), 4),
            round(checks["task_score"][row], 4) if checks else None,
            None if judged is None else round(float(judged[row]), 4),
        ]
        for row in range(min(recipe.evaluation.shown, len(answers)))
    ]
    return Evaluation(metrics=metrics, answers=given, rows=rows)


def distinct(episodes: Episodes, n: int) -> float:
    """Distinct n-grams of response tokens over all of them (Li et al. 2016, https://arxiv.org/abs/1510.03055); 1 where
    no response has n tokens."""
    grams: list[tuple[int, ...]] = []
    for row, mask in zip(episodes.responses, episodes.mask, strict=True):
        tokens = row[mask].tolist()
        grams += [tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 1.0
