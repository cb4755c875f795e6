"""Reddit threads in Pushshift's schema: submissions and scored comments, joined by `link_id`.

One file holds both (`cat RS.jsonl RC.jsonl`), in any order. A submission asks, the comments directly under it answer:
the one with the highest score is a demonstration, the highest-scored ones are a ranking. Scores grow with the time a
comment has been there, and nothing here corrects for that.

The file is joined in memory. Baumgartner et al. 2020, https://arxiv.org/abs/2001.08435.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from data.formats import fields
from data.formats.comparisons import GONE
from data.formats.format import FileBuilder, Options, Outcome, Row, Skipped, format_of
from data.formats.rankings import tiers_of
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

    submissions: dict[str, Prompt] = field(default_factory=dict)
    left_out: set[str] = field(default_factory=set)
    """Submissions that ask nothing: their comments are counted under a reason of their own."""
    comments: dict[str, list[_Comment]] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    """Ids of comments."""


Rows = Iterator[tuple[Row, Origin]]


def _read(rows: Rows, threads: _Threads) -> Iterator[Outcome]:
    for row, origin in rows:
        try:
            add = _add_comment if "body" in row else _add_submission
            reason = add(row, origin, threads)
        except DataError as error:
            yield error
        else:
            if reason:
                yield Skipped(reason, origin)


def _add_submission(row: Row, origin: Origin, threads: _Threads) -> str:
    """Keep a submission, or say why not. {id, title, selftext, is_self, subreddit, ...}."""
    name = fields.filled(row, "id", origin).removeprefix("t3_")
    title, body = fields.filled(row, "title", origin).strip(), fields.optional_text(row, "selftext", origin).strip()
    if name in threads.submissions or name in threads.left_out:
        return "copy of a submission"
    if body.lower() in GONE or title.lower() in GONE or row.get("removed_by_category"):
        threads.left_out.add(name)
        return "a deleted submission"
    if row.get("is_self") is False:
        threads.left_out.add(name)
        return "a submission that links elsewhere"
    subreddit = fields.optional_text(row, "subreddit", origin)
    content = f"{title}\n\n{body}" if body else title
    threads.submissions[name] = fields.user_prompt({}, content, origin, task=subreddit)
    return ""


def _add_comment(row: Row, origin: Origin, threads: _Threads) -> str:
    """Keep a comment, or say why not. {id, link_id: t3_..., parent_id: t3_... or t1_..., body, score, ...}."""
    name, thread = fields.filled(row, "id", origin), fields.filled(row, "link_id", origin)
    parent, body = fields.filled(row, "parent_id", origin), fields.text(row, "body", origin).strip()
    if not thread.startswith("t3_"):
        raise DataError(f"{origin}: 'link_id' must begin with t3_, found {thread[:20]!r}. Fix or remove the row.")
    if name in threads.seen:
        return "copy of a comment"
    threads.seen.add(name)
    if parent != thread:
        return "a comment on a comment"
    if body.lower() in GONE:
        return "a deleted comment"
    if row.get("stickied") is True or row.get("distinguished") == "moderator" or row.get("author") == "AutoModerator":
        return "a moderator's notice"
    if row.get("score_hidden") is True:
        return "a comment whose score is hidden"
    score = fields.whole_number(row, "score", origin)
    if not body:
        raise DataError(f"{origin}: 'body' is empty. Remove the row.")
    threads.comments.setdefault(thread.removeprefix("t3_"), []).append(_Comment(body, score, origin))
    return ""


def _answered(threads: _Threads) -> Iterator[tuple[Prompt, list[_Comment]] | Skipped]:
    """Submissions in the order of the file, each with its comments from the best on; equal scores in file order."""
    for name, comments in threads.comments.items():
        if name in threads.submissions:
            continue
        where = "under a submission left out" if name in threads.left_out else "whose submission is not in the file"
        for comment in comments:
            yield Skipped(f"a comment {where}", comment.origin)
    for name, prompt in threads.submissions.items():
        distinct: dict[str, _Comment] = {}
        for comment in sorted(threads.comments.get(name, ()), key=lambda comment: -comment.score):
            if comment.body in distinct:
                yield Skipped("copy of a comment", comment.origin)
            distinct.setdefault(comment.body, comment)
        yield prompt, list(distinct.values())


def _prompts(rows: Rows, options: Options) -> Iterator[Outcome]:
    threads = _Threads()
    yield from _read(rows, threads)
    yield from threads.submissions.values()


def _demonstrations(rows: Rows, options: Options) -> Iterator[Outcome]:
    threads = _Threads()
    yield from _read(rows, threads)
    for answered in _answered(threads):
        if isinstance(answered, Skipped):
            yield answered
            continue
        prompt, comments = answered
        if not comments:
            yield Skipped("a submission without an answer", prompt.origin)
        elif comments[0].score < options["min_score"]:
            yield Skipped("a submission whose best answer is under min_score", prompt.origin)
        else:
            yield Demonstration(prompt, comments[0].body)


def _rankings(rows: Rows, options: Options) -> Iterator[Outcome]:
    most = int(options["responses"])
    if most < 2:
        raise DataError(f"data: format 'reddit': responses must be at least 2, found {most}.")
    threads = _Threads()
    yield from _read(rows, threads)
    for answered in _answered(threads):
        if isinstance(answered, Skipped):
            yield answered
            continue
        prompt, comments = answered[0], answered[1][:most]
        tiers = tiers_of([comment.score for comment in comments])
        if len(comments) < 2:
            yield Skipped("a submission with fewer than two answers", prompt.origin)
        elif len(set(tiers)) < 2:
            yield Skipped("a submission whose answers all have the same score", prompt.origin)
        else:
            yield Ranking(prompt, tuple(comment.body for comment in comments), tiers)


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
