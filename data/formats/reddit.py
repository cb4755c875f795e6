"""Reddit threads in Pushshift's schema: submissions and scored comments, joined by `link_id`.

One file holds both (`cat RS.jsonl RC.jsonl`), in any order. A submission asks, the comments directly under it answer:
the one with the highest score is a demonstration, the highest-scored ones are a ranking. Scores grow with the time a
comment has been there, and nothing here corrects for that.

The file is joined in memory. Baumgartner et al. 2020, https://arxiv.org/abs/2001.08435.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice

from data.formats import fields
from data.formats.comparisons import GONE
from data.formats.format import FileBuilder, Options, Outcome, Row, Skipped, format_of
from data.formats.rankings import scored_ranking
from data.records import Demonstration, Origin, Prompt, Ranking
from onebase.errors import DataError


@dataclass(frozen=True)
class _Comment:
    body: str
    score: int
    origin: Origin


@dataclass
class _Threads:
    """What a file holds, by the submission's id."""

    submissions: dict[str, Prompt | None] = field(default_factory=dict)
    """None for those that ask nothing: their comments are counted under a reason of their own."""
    comments: dict[str, list[_Comment]] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    """Ids of comments."""


Rows = Iterator[tuple[Row, Origin]]


def _read(rows: Rows, threads: _Threads) -> Iterator[Outcome]:
    for row, origin in rows:
        add = _add_comment if "body" in row else _add_submission
        try:
            if reason := add(row, origin, threads):
                yield Skipped(reason, origin)
        except DataError as error:
            yield error


def _first_that_applies(reasons: Mapping[str, bool]) -> str:
    return next((reason for reason, applies in reasons.items() if applies), "")


def _add_submission(row: Row, origin: Origin, threads: _Threads) -> str:
    """Keep a submission, or say why not. {id, title, selftext, is_self, subreddit, ...}."""
    name = fields.filled(row, "id", origin).removeprefix("t3_")
    title, body = fields.filled(row, "title", origin).strip(), fields.optional_text(row, "selftext", origin).strip()
    if name in threads.submissions:
        return "copy of a submission"
    is_gone = body.lower() in GONE or title.lower() in GONE or bool(row.get("removed_by_category"))
    reason = _first_that_applies(
        {"a deleted submission": is_gone, "a submission that links elsewhere": row.get("is_self") is False}
    )
    content = f"{title}\n\n{body}" if body else title
    subreddit = "" if reason else fields.optional_text(row, "subreddit", origin)
    threads.submissions[name] = None if reason else fields.prompt_of({}, content, origin, task=subreddit)
    return reason


def _add_comment(row: Row, origin: Origin, threads: _Threads) -> str:
    """Keep a comment, or say why not. {id, link_id: t3_..., parent_id: t3_... or t1_..., body, score, ...}."""
    name, thread = fields.filled(row, "id", origin), fields.filled(row, "link_id", origin)
    parent, body = fields.filled(row, "parent_id", origin), fields.text(row, "body", origin).strip()
    fields.require(
        thread.startswith("t3_"),
        origin,
        f"'link_id' must begin with t3_, found {thread[:20]!r}. Fix or remove the row.",
    )
    is_copy = name in threads.seen
    threads.seen.add(name)
    is_notice = row.get("distinguished") == "moderator" or row.get("author") == "AutoModerator"
    reason = _first_that_applies(
        {
            "copy of a comment": is_copy,
            "a comment on a comment": parent != thread,
            "a deleted comment": body.lower() in GONE,
            "a moderator's notice": row.get("stickied") is True or is_notice,
            "a comment whose score is hidden": row.get("score_hidden") is True,
        }
    )
    if not reason:
        score = fields.number(row, "score", origin, "a whole number")
        fields.require(body, origin, "'body' is empty. Remove the row.")
        threads.comments.setdefault(thread.removeprefix("t3_"), []).append(_Comment(body, score, origin))
    return reason


def _answers(rows: Rows) -> Iterator[Outcome | tuple[Prompt, dict[str, int]]]:
    """Submissions in the order of the file, each with the scores of its comments, from the best on; equal scores in
    file order. And everything that is left out."""
    threads = _Threads()
    yield from _read(rows, threads)
    for name, comments in threads.comments.items():
        where = "under a submission left out" if name in threads.submissions else "whose submission is not in the file"
        if threads.submissions.get(name) is None:
            yield from (Skipped(f"a comment {where}", comment.origin) for comment in comments)
    for name, prompt in threads.submissions.items():
        if prompt is None:
            continue
        scores: dict[str, int] = {}
        for comment in sorted(threads.comments.get(name, ()), key=lambda comment: -comment.score):
            if comment.body in scores:
                yield Skipped("copy of a comment", comment.origin)
            scores.setdefault(comment.body, comment.score)
        yield prompt, scores


def _prompts(rows: Rows, options: Options) -> Iterator[Outcome]:
    threads = _Threads()
    yield from _read(rows, threads)
    yield from filter(None, threads.submissions.values())


def _demonstrations(rows: Rows, options: Options) -> Iterator[Outcome]:
    for answered in _answers(rows):
        if not isinstance(answered, tuple):
            yield answered
            continue
        prompt, scores = answered
        best = next(iter(scores), "")
        if not scores:
            yield Skipped("a submission without an answer", prompt.origin)
        elif scores[best] < options["min_score"]:
            yield Skipped("a submission whose best answer is under min_score", prompt.origin)
        else:
            yield Demonstration(prompt, best)


def _rankings(rows: Rows, options: Options) -> Iterator[Outcome]:
    most = int(options["responses"])
    fields.require(most >= 2, "data: format 'reddit'", f"responses must be at least 2, found {most}.")
    few, tied = "a submission with fewer than two answers", "a submission whose answers all have the same score"
    for answered in _answers(rows):
        if isinstance(answered, tuple):
            prompt, scores = answered
            answered = scored_ranking(prompt, dict(islice(scores.items(), most)), alone=few, tied=tied)
        yield answered


_FILES: dict[type, FileBuilder] = {Prompt: _prompts, Demonstration: _demonstrations, Ranking: _rankings}
_OPTIONS: Options = {"responses": 9.0, "min_score": 1.0}

FORMATS = [
    # Which of the two comes first in a file has no meaning, so each is recognised and both are read the same way.
    format_of(
        "reddit",
        "Pushshift submissions and comments, https://arxiv.org/abs/2001.08435",
        "id title subreddit created_utc",
        files=_FILES,
        options=_OPTIONS,
        reads="score",
    ),
    format_of(
        "reddit-comments",
        "the same file, when it begins with a comment",
        "id link_id parent_id body",
        files=_FILES,
        options=_OPTIONS,
        reads="score",
    ),
]
