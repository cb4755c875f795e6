"""Several responses to one prompt in one row: our own rankings, UltraFeedback, Nectar, qa-feedback."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, permutations
from typing import Literal

from data.formats import fields
from data.formats.demonstrations import Question
from data.formats.format import PromptReader, RankingReader, Row, Skipped, format_of
from data.records import Origin, Prompt, Ranking
from onebase.errors import DataError


def tiers_of(scores: Sequence[int | float], *, best: Literal["highest", "lowest"] = "highest") -> tuple[int, ...]:
    """0 for the best score, 1 for the next one there is; equal scores tie."""
    levels = sorted(set(scores), reverse=best == "highest")
    return tuple(levels.index(score) for score in scores)


def scored_ranking(prompt: Prompt, scores: Mapping[str, int | float], *, alone: str, tied: str) -> Ranking | Skipped:
    """The ranking of responses by their scores, or why they give none. alone and tied: the reason where there is one
    response, or one score."""
    if len(scores) < 2:
        return Skipped(alone, prompt.origin)
    if len(set(scores.values())) < 2:
        return Skipped(tied, prompt.origin)
    return Ranking(prompt, tuple(scores), tiers_of(list(scores.values())))


Order = Callable[[Row, Sequence[Row], Origin], tuple[int, ...]]
"""Reads the tiers of a row's responses, by the row and by the parts that hold the responses."""


def compared(
    prompt: PromptReader,
    responses: tuple[str, ...],
    order: Order,
    *,
    listed: str = "",
    label: str = "",
    stripped: bool = False,
) -> RankingReader:
    """What reads a ranking of responses under several keys; or under one key of each object in a list.

    listed: the key of that list. label: the key of a response's label. stripped: whether white space around responses
    is the publisher's, and no part of them.
    """

    def ranking(row: Row, origin: Origin) -> Ranking:
        parts = fields.objects(row, listed, origin) if listed else [row]
        tiers = order(row, parts, origin)
        texts = [fields.text(part, key, origin) for part in parts for key in responses]
        texts = [text.strip() for text in texts] if stripped else texts
        labels = [fields.optional_text(part, label, origin) for part in parts] if label else []
        return Ranking(prompt(row, origin), tuple(texts), tiers, tuple(labels) if all(labels) else ())

    return ranking


# --- ours ---


def _tiered_ranking(row: Row, origin: Origin) -> Ranking:
    """`responses` with `tiers` (0 is best); `ranks` is the same under another name, from whatever number it starts."""
    responses = tuple(fields.texts(row, "responses", origin))
    orders: list[tuple[int, ...]] = []
    for key in ("tiers", "ranks"):
        numbers = row.get(key)
        if numbers is None:
            continue
        if not isinstance(numbers, list) or not all(type(number) is int for number in numbers):
            raise DataError(f"{origin}: '{key}' must be a list of whole numbers, 0 (or the smallest) for the best.")
        orders.append(tiers_of(numbers, best="lowest"))
    if len(set(orders)) > 1:
        raise DataError(f"{origin}: contradictory: 'tiers' and 'ranks' give different orders. Remove one.")
    labels = row.get("labels") or []
    if not isinstance(labels, list):
        raise DataError(f"{origin}: 'labels' must be a list, one for each response. Fix or remove the row.")
    labels = fields.texts({"labels": labels}, "labels", origin)
    return Ranking(fields.given_prompt(row, origin), responses, orders[0], tuple(labels))


# --- UltraFeedback ---

ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")


def _rating(completion: Row, aspect: str, origin: Origin) -> int:
    annotations = completion.get("annotations")
    annotation = annotations.get(aspect) if isinstance(annotations, dict) else None
    if not isinstance(annotation, dict):
        raise DataError(f"{origin}: a completion has no annotation of '{aspect}'. Remove the row.")
    rating = annotation.get("Rating")
    if rating not in ("1", "2", "3", "4", "5"):
        raise DataError(
            f"{origin}: a completion's rating of '{aspect}' is {repr(rating)[:20]}, not '1' to '5'. Remove the row."
        )
    return int(rating)


def _by_ratings(row: Row, completions: Sequence[Row], origin: Origin) -> tuple[int, ...]:
    """{source, instruction, completions: [{model, response, annotations: {aspect: {Rating, Rationale}}, ...}]}.

    Ranked by the mean of the four aspects' ratings. `overall_score` is not used: in the published file some are 10
    where the critique means 1. Cui et al. 2023, https://arxiv.org/abs/2310.01377.
    """
    return tiers_of([sum(_rating(completion, aspect, origin) for aspect in ASPECTS) for completion in completions])


# --- Nectar ---


def _by_ranks(row: Row, answers: Sequence[Row], origin: Origin) -> tuple[int, ...]:
    """{prompt, answers: [{answer, model, rank}], ...}: rank 1 is best; ranks may be 1.0, 2.0 ...

    The prompt is a dialogue with Anthropic's marks, which ends with the mark of the reply.
    https://huggingface.co/datasets/berkeley-nest/Nectar.
    """
    ranks = [fields.number(answer, "rank", origin) for answer in answers]
    for rank in ranks:
        if rank % 1 or not 1 <= rank <= len(answers):
            raise DataError(
                f"{origin}: 'rank' must be a whole number from 1 to {len(answers)}, found {rank:g}. Remove the row."
            )
    return tiers_of(ranks, best="lowest")


# --- qa-feedback ---

ANSWERS = 4
PREDICTIONS = tuple(f"prediction {index + 1}" for index in range(ANSWERS))
PAIRS = tuple(combinations(range(ANSWERS), 2))
"""The order of `preference`: (1,2) (1,3) (1,4) (2,3) (2,4) (3,4)."""
TIE, FIRST, SECOND = 0, 1, 2
"""A pair's label: which of the two is better."""


def tiers_of_pairs(labels: Sequence[int], origin: Origin) -> tuple[int, ...]:
    """The only order with ties that agrees with all pair labels.

    No order does where ties are not transitive (1 = 2, 2 = 3, but 1 over 3) or wins form a circle. Such a row is
    refused: any order would turn somebody's verdict into another.
    """
    verdict = dict(zip(PAIRS, labels, strict=True))
    verdict |= {(j, i): {TIE: TIE, FIRST: SECOND, SECOND: FIRST}[label] for (i, j), label in verdict.items()}
    for a, b, c in permutations(range(ANSWERS), 3):
        steps = (verdict[a, b], verdict[b, c])
        # Two steps to at least as good lead to at least as good, and to better where one of them does.
        if SECOND not in steps and verdict[a, c] != (FIRST if FIRST in steps else TIE):
            kind = "ties are not transitive" if TIE in steps else "wins form a circle"
            raise DataError(f"{origin}: contradictory: the pair labels fit no order, because {kind}. Remove the row.")
    losses = [sum(verdict[i, j] == SECOND for j in range(ANSWERS) if j != i) for i in range(ANSWERS)]
    return tiers_of(losses, best="lowest")


def _passages(row: Row, origin: Origin) -> str:
    """`passages`: a list of [title, sentence, sentence, ...]."""
    passages = row["passages"]
    fields.require(
        isinstance(passages, list),
        origin,
        f"'passages' must be a list, found {type(passages).__name__}. Fix or remove the row.",
    )
    parts = [fields.texts({"passages": passage}, "passages", origin) for passage in passages]
    for index, part in enumerate(parts):
        fields.require(len(part) >= 2, origin, f"passage {index + 1} has no sentence under its title. Remove the row.")
    return "\n\n".join(f"{title}: {' '.join(sentences)}" for title, *sentences in parts)


def _qa_prompt(row: Row, origin: Origin) -> Prompt:
    content = fields.joined(fields.filled(row, "question", origin), _passages(row, origin))
    return fields.prompt_of(row, content, origin)


def _by_pairs(row: Row, parts: Sequence[Row], origin: Origin) -> tuple[int, ...]:
    """{question, passages, gold, "prediction 1" ... "prediction 4", preference: six pair labels}.

    Wu et al. 2023, https://arxiv.org/abs/2306.01693. The first position wins more often: shuffle the responses.
    """
    labels = row["preference"]
    fields.require(
        isinstance(labels, list) and len(labels) == len(PAIRS),
        origin,
        f"'preference' must be a list of {len(PAIRS)} pair labels. Remove the row.",
    )
    labels = [fields.choice_of({"preference": label}, "preference", (TIE, FIRST, SECOND), origin) for label in labels]
    return tiers_of_pairs(labels, origin)


ULTRAFEEDBACK = Question("instruction", task="source")

FORMATS = [
    format_of(
        "tiers", "ours", "prompt responses tiers", prompt=fields.given_prompt, ranking=_tiered_ranking, reads="history"
    ),
    format_of(
        "ranks", "ours", "prompt responses ranks", prompt=fields.given_prompt, ranking=_tiered_ranking, reads="history"
    ),
    format_of(
        "ultrafeedback",
        "openbmb/UltraFeedback, https://arxiv.org/abs/2310.01377",
        "instruction completions",
        prompt=ULTRAFEEDBACK,
        ranking=compared(ULTRAFEEDBACK, ("response",), _by_ratings, listed="completions", label="model"),
        reads="history",
    ),
    format_of(
        "nectar",
        "berkeley-nest/Nectar, https://huggingface.co/datasets/berkeley-nest/Nectar",
        "prompt answers",
        prompt=fields.given_prompt,
        ranking=compared(fields.given_prompt, ("answer",), _by_ranks, listed="answers", label="model"),
        reads="history",
    ),
    format_of(
        "qa-feedback",
        "FineGrainedRLHF, https://arxiv.org/abs/2306.01693",
        frozenset({"question", "passages", "preference", "prediction 1"}),
        prompt=_qa_prompt,
        ranking=compared(_qa_prompt, PREDICTIONS, _by_pairs, stripped=True),
        reads="history",
    ),
]
