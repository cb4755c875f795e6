"""Several responses to one prompt in one row: our own rankings, UltraFeedback, Nectar, qa-feedback."""

from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, permutations
from typing import Literal

from data.formats import fields
from data.formats.format import Builder, Format, Options, Outcome, Row
from data.formats.instructions import PROMPT, given_prompt, prompts
from data.records import Origin, Prompt, Ranking
from onebase.errors import DataError


def tiers_of(scores: Sequence[int | float], *, best: Literal["highest", "lowest"] = "highest") -> tuple[int, ...]:
    """0 for the best score, 1 for the next one there is; equal scores tie."""
    levels = sorted(set(scores), reverse=best == "highest")
    return tuple(levels.index(score) for score in scores)


# --- ours ---


def _own_tiers(row: Row, key: str, origin: Origin) -> tuple[int, ...]:
    tiers = row[key]
    if not isinstance(tiers, list) or not all(isinstance(tier, int) and not isinstance(tier, bool) for tier in tiers):
        raise DataError(f"{origin}: '{key}' must be a list of whole numbers, 0 (or the smallest) for the best.")
    return tiers_of(tiers, best="lowest")


def _own(row: Row, origin: Origin) -> Ranking:
    """`responses` with `tiers` (0 is best); `ranks` is the same under another name, from whatever number it starts."""
    responses = tuple(fields.texts(row, "responses", origin))
    found = [_own_tiers(row, key, origin) for key in ("tiers", "ranks") if row.get(key) is not None]
    if len(found) == 2 and found[0] != found[1]:
        raise DataError(f"{origin}: contradictory: 'tiers' and 'ranks' say different things. Remove one.")
    labels = row.get("labels") or []
    if not isinstance(labels, list):
        raise DataError(f"{origin}: 'labels' must be a list, one for each response. Mend the row, or drop it.")
    labels = fields.texts(row, "labels", origin) if labels else []
    return Ranking(given_prompt(row, origin), responses, found[0], tuple(labels))


# --- UltraFeedback ---

ASPECTS = ("instruction_following", "honesty", "truthfulness", "helpfulness")


def _rating(completion: Row, aspect: str, origin: Origin) -> int:
    annotations = completion.get("annotations")
    annotation = annotations.get(aspect) if isinstance(annotations, dict) else None
    if not isinstance(annotation, dict):
        raise DataError(f"{origin}: a completion has no annotation of '{aspect}'. Drop the row.")
    rating = annotation.get("Rating")
    if rating not in ("1", "2", "3", "4", "5"):
        shown = repr(rating)[:20]
        raise DataError(f"{origin}: a completion's rating of '{aspect}' is {shown}, not '1' to '5'. Drop the row.")
    return int(rating)


def _ultrafeedback(row: Row, origin: Origin) -> Ranking:
    """{source, instruction, completions: [{model, response, annotations: {aspect: {Rating, Rationale}}, ...}]}.

    Ranked by the mean of the four aspects' ratings. `overall_score` is not used: in the published file some are 10
    where the critique means 1. Cui et al. 2023, https://arxiv.org/abs/2310.01377.
    """
    completions = fields.objects(row, "completions", origin)
    scores = [sum(_rating(one, aspect, origin) for aspect in ASPECTS) for one in completions]
    responses = tuple(fields.text(one, "response", origin) for one in completions)
    labels = tuple(fields.optional_text(one, "model", origin) for one in completions)
    return Ranking(_ultrafeedback_prompt(row, origin), responses, tiers_of(scores), labels if all(labels) else ())


def _ultrafeedback_prompt(row: Row, origin: Origin) -> Prompt:
    source = fields.optional_text(row, "source", origin)
    return fields.asked(row, fields.text(row, "instruction", origin), origin, task=source)


# --- Nectar ---


def _nectar(row: Row, origin: Origin) -> Ranking:
    """{prompt, answers: [{answer, model, rank}], ...}: rank 1 is best; ranks may be 1.0, 2.0 ...

    The prompt is a dialogue with Anthropic's marks, which ends with the mark of the reply.
    https://huggingface.co/datasets/berkeley-nest/Nectar.
    """
    answers = fields.objects(row, "answers", origin)
    ranks = [fields.number(one, "rank", origin) for one in answers]
    for rank in ranks:
        if not rank.is_integer() or not 1 <= rank <= len(answers):
            most = len(answers)
            raise DataError(f"{origin}: 'rank' must be a whole number from 1 to {most}, found {rank:g}. Drop the row.")
    responses = tuple(fields.text(one, "answer", origin) for one in answers)
    labels = tuple(fields.optional_text(one, "model", origin) for one in answers)
    tiers = tiers_of(ranks, best="lowest")
    return Ranking(given_prompt(row, origin), responses, tiers, labels if all(labels) else ())


# --- qa-feedback ---

ANSWERS = 4
PAIRS = tuple(combinations(range(ANSWERS), 2))
"""The order of `preference`: (1,2) (1,3) (1,4) (2,3) (2,4) (3,4)."""
TIE, FIRST, SECOND = 0, 1, 2
"""A pair's label: which of the two is better."""


def tiers_of_pairs(labels: Sequence[int], origin: Origin) -> tuple[int, ...]:
    """The one order with ties that says the same as all pair labels.

    Where there is none, because ties are not transitive (1 = 2, 2 = 3, but 1 over 3) or wins go round, the row is
    refused: any order would turn somebody's verdict into another.
    """
    verdict = dict(zip(PAIRS, labels, strict=True))
    verdict |= {(j, i): {TIE: TIE, FIRST: SECOND, SECOND: FIRST}[label] for (i, j), label in verdict.items()}
    for a, b, c in permutations(range(ANSWERS), 3):
        steps = (verdict[a, b], verdict[b, c])
        # From at least as good to at least as good it must go on, and to better where one of the steps is.
        if SECOND not in steps and verdict[a, c] != (FIRST if FIRST in steps else TIE):
            kind = "ties are not transitive" if TIE in steps else "wins go round in a circle"
            raise DataError(f"{origin}: contradictory: the pair labels fit no order, because {kind}. Drop the row.")
    losses = [sum(verdict[i, j] == SECOND for j in range(ANSWERS) if j != i) for i in range(ANSWERS)]
    return tiers_of(losses, best="lowest")


def _passages(row: Row, origin: Origin) -> str:
    """`passages`: a list of [title, sentence, sentence, ...]."""
    found = row["passages"]
    if not isinstance(found, list):
        raise DataError(f"{origin}: 'passages' must be a list, found {type(found).__name__}. Mend the row, or drop it.")
    parts = []
    for index, passage in enumerate(found):
        title, *sentences = fields.texts({"passages": passage}, "passages", origin) or [""]
        if not sentences:
            raise DataError(f"{origin}: passage {index + 1} has no sentence under its title. Drop the row.")
        parts.append(f"{title}: {' '.join(sentences)}")
    return "\n\n".join(parts)


def _qa_prompt(row: Row, origin: Origin) -> Prompt:
    return fields.asked(row, fields.joined(fields.filled(row, "question", origin), _passages(row, origin)), origin)


def _qa_feedback(row: Row, origin: Origin) -> Ranking:
    """{question, passages, gold, "prediction 1" ... "prediction 4", preference: six pair labels}.

    Wu et al. 2023, https://arxiv.org/abs/2306.01693. The first position wins more often: shuffle the responses.
    """
    labels = row["preference"]
    if not isinstance(labels, list) or len(labels) != len(PAIRS):
        raise DataError(f"{origin}: 'preference' must be a list of {len(PAIRS)} pair labels. Drop the row.")
    labels = [fields.one_of({"preference": label}, "preference", (TIE, FIRST, SECOND), origin) for label in labels]
    responses = tuple(fields.text(row, f"prediction {index + 1}", origin).strip() for index in range(ANSWERS))
    return Ranking(_qa_prompt(row, origin), responses, tiers_of_pairs(labels, origin))


def rankings(read: Callable[[Row, Origin], Ranking]) -> Builder:
    def build(row: Row, origin: Origin, options: Options) -> Iterator[Outcome]:
        yield read(row, origin)

    return build


def _format(name: str, publisher: str, keys: frozenset[str], prompt: Builder, ranking: Builder) -> Format:
    rows = {Prompt: prompt, Ranking: ranking}
    return Format(name=name, publisher=publisher, keys=keys, rows=rows, reads=frozenset({"history"}))


_OWN = rankings(_own)

FORMATS = [
    _format("tiers", "ours", frozenset({"prompt", "responses", "tiers"}), PROMPT, _OWN),
    _format("ranks", "ours", frozenset({"prompt", "responses", "ranks"}), PROMPT, _OWN),
    _format(
        "ultrafeedback",
        "openbmb/UltraFeedback, https://arxiv.org/abs/2310.01377",
        frozenset({"instruction", "completions"}),
        prompts(_ultrafeedback_prompt),
        rankings(_ultrafeedback),
    ),
    _format(
        "nectar",
        "berkeley-nest/Nectar, https://huggingface.co/datasets/berkeley-nest/Nectar",
        frozenset({"prompt", "answers"}),
        PROMPT,
        rankings(_nectar),
    ),
    _format(
        "qa-feedback",
        "FineGrainedRLHF, https://arxiv.org/abs/2306.01693",
        frozenset({"question", "passages", "preference", "prediction 1"}),
        prompts(_qa_prompt),
        rankings(_qa_feedback),
    ),
]
