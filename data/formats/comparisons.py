"""Two responses that somebody compared: summaries (OpenAI), Reddit answers (SHP), PandaLM, HelpSteer3."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from data.formats import fields
from data.formats.demonstrations import INSTRUCTION
from data.formats.format import Row, format_of
from data.formats.key_groups import SYSTEM
from data.formats.rankings import compared
from data.records import Origin, Prompt

GONE = ("[deleted]", "[removed]", "[deleted by user]", "[ removed by reddit ]")
"""What Reddit writes where a text was, in lower case."""


def _refuse_gone(row: Row, key: str, origin: Origin) -> None:
    fields.require(
        fields.text(row, key, origin).strip().lower() not in GONE, origin, f"'{key}' was deleted. Remove the row."
    )


# --- OpenAI's summaries ---


def _post_prompt(row: Row, origin: Origin) -> Prompt:
    """`info`: {id, post, title, subreddit} of Reddit, or {id, article, title, site} of CNN/DM.

    The form of the prompt is the paper's for Reddit (Stiennon et al. 2020, https://arxiv.org/abs/2009.01325).
    """
    info = row.get("info")
    fields.require(
        isinstance(info, dict), origin, f"'info' must be an object, found {type(info).__name__}. Fix or remove the row."
    )
    assert isinstance(info, dict)
    title = fields.optional_text(info, "title", origin).strip()
    if info.get("post") is None:
        article = f"Article: {fields.filled(info, 'article', origin).strip()}\n\nTL;DR:"
        content = f"Title: {title}\n\n{article}" if title else article
        return fields.prompt_of({}, content, origin, task=fields.optional_text(info, "site", origin))
    post = fields.filled(info, "post", origin).strip()
    subreddit = fields.text(info, "subreddit", origin)
    content = f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"
    return fields.prompt_of({}, content, origin, task=subreddit)


def _labelled_post(row: Row, origin: Origin) -> Prompt:
    """The prompt of a ranking, with who ranked it."""
    prompt = _post_prompt(row, origin)
    labeler = fields.facts({key: row.get(key) for key in fields.LABELERS})
    return replace(prompt, meta={**prompt.meta, **labeler})


def _by_choice(row: Row, summaries: Sequence[Row], origin: Origin) -> tuple[int, ...]:
    """{info, summaries: [{text, policy, note}, ...], choice}: the index of the better one. Texts begin with a space."""
    fields.require(len(summaries) == 2, origin, f"expected 2 summaries, found {len(summaries)}. Remove the row.")
    choice = fields.choice_of(row, "choice", (0, 1), origin)
    return choice, 1 - choice


# --- SHP ---


def _history_prompt(row: Row, origin: Origin) -> Prompt:
    history = fields.filled(row, "history", origin)
    _refuse_gone(row, "history", origin)
    domain = fields.optional_text(row, "domain", origin)
    return fields.prompt_of(row, history, origin, task=domain, history=False)


REFERENCES = ("human_ref_A", "human_ref_B")


def _by_label(row: Row, parts: Sequence[Row], origin: Origin) -> tuple[int, ...]:
    """{history, human_ref_A, human_ref_B, labels, score_A, score_B, ...}: labels is 1 when A is preferred, 0 when B is.

    Ethayarajh et al. 2022, https://huggingface.co/datasets/stanfordnlp/SHP.
    """
    for key in REFERENCES:
        _refuse_gone(row, key, origin)
    first = fields.choice_of(row, "labels", (0, 1), origin)
    if row.get("score_A") is not None and row.get("score_B") is not None:
        score, other = fields.number(row, "score_A", origin), fields.number(row, "score_B", origin)
        fields.require(
            score != other and (score > other) == (first == 1),
            origin,
            "contradictory: 'labels' prefers the one that does not score higher. Remove the row.",
        )
    return 1 - first, first


# --- PandaLM and HelpSteer3 ---

_ANNOTATOR = re.compile(r"annotator\d+")
RESPONSES = ("response1", "response2")


def _by_votes(row: Row, parts: Sequence[Row], origin: Origin) -> tuple[int, ...]:
    """{instruction, input, response1, response2, annotator1, annotator2, ...}: 0 a tie, 1 or 2 the better one.

    The verdict of more than half of the annotators counts. A tie ranks nothing and is refused, and so is a vote without
    a majority.
    https://arxiv.org/abs/2306.05087.
    """
    keys = sorted(key for key in row if _ANNOTATOR.fullmatch(key) and row[key] is not None)
    votes = [fields.choice_of(row, key, (0, 1, 2), origin) for key in keys]
    (verdict, count), *_ = Counter(votes).most_common(1)
    fields.require(
        2 * count > len(votes), origin, f"the annotators do not agree: {', '.join(map(str, votes))}. Remove the row."
    )
    return int(verdict == 2), int(verdict == 1)


def _pandalm_prompt(row: Row, origin: Origin) -> Prompt:
    """An empty input is a missing number (NaN) in the publishers' file; Parquet brings it as such."""
    value = row.get("input")
    missing = isinstance(value, float) and value != value
    return INSTRUCTION({**row, "input": None} if missing else row, origin)


def _context_prompt(row: Row, origin: Origin) -> Prompt:
    known = {"category": row.get("domain"), **{key: row.get(key) for key in SYSTEM}}
    return fields.prompt_of(known, fields.messages(row, "context", origin), origin)


def _by_preference(row: Row, parts: Sequence[Row], origin: Origin) -> tuple[int, ...]:
    """{context: messages, response1, response2, overall_preference}: -3 (first much better) to 3; 0 is a tie.

    Wang et al. 2025, https://arxiv.org/abs/2505.11475.
    """
    preference = fields.choice_of(row, "overall_preference", range(-3, 4), origin)
    return int(preference > 0), int(preference < 0)


FORMATS = [
    format_of(
        "summarize-comparisons",
        "OpenAI summarize-from-feedback, comparisons, https://arxiv.org/abs/2009.01325",
        "info summaries choice",
        prompt=_post_prompt,
        ranking=compared(_labelled_post, ("text",), _by_choice, listed="summaries", label="policy", stripped=True),
    ),
    format_of(
        "shp",
        "Stanford Human Preferences, https://huggingface.co/datasets/stanfordnlp/SHP",
        "history human_ref_A human_ref_B labels",
        prompt=_history_prompt,
        ranking=compared(_history_prompt, REFERENCES, _by_label),
    ),
    format_of(
        "pandalm",
        "PandaLM test set, https://arxiv.org/abs/2306.05087",
        "instruction response1 response2 annotator1",
        prompt=_pandalm_prompt,
        ranking=compared(_pandalm_prompt, RESPONSES, _by_votes),
        reads="input history",
    ),
    format_of(
        "helpsteer3",
        "NVIDIA HelpSteer3 preferences, https://arxiv.org/abs/2505.11475",
        "context response1 response2 overall_preference",
        prompt=_context_prompt,
        ranking=compared(_context_prompt, RESPONSES, _by_preference),
    ),
]
