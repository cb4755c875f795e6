"""`onebase score`: the reward model's score of any response, a line of JSON in, a line of JSON out.

    {"prompt": "...", "response": "..."}            ->  the same row with "score": 0.41
    {"prompt": "...", "responses": ["...", ...]}    ->  the same row with "scores": [0.41, -1.2, ...]

With several reward models that is the combined score. The scores of each model and their spread are added:

    "members": {"reward": 0.5, "reward_2": 0.32}, "spread": 0.09       (lists for "responses")

The prompt is text, or a list of messages. Rows are read, scored in micro-batches and written a block at a time. Memory
does not grow with the file.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from data.chat.conversations import Chat
from data.files.readers import read_jsonl, reader_of, why_no_file
from data.formats import table
from data.records import Origin, Prompt
from data.writing import atomically
from evaluation.reward_model.group_scores import GroupScores, score_groups
from evaluation.reward_model.loading import RewardModel
from onebase.errors import DataError
from onebase.model.architecture import Reach, reach_of
from onebase.sequences.episodes import TokenIds
from onebase.terminal import show_json

BLOCK = 256
"""Rows that are scored together. Within a block, rows of similar length share a micro-batch."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the file, as given and as tokens."""

    content: dict[str, Any]
    responses: list[str]
    candidates: list[TokenIds]
    """Prompt and response joined, for each response."""


def write_lines(rows: Iterator[dict[str, Any]], out: Path | None) -> int:
    """Write a line of JSON for each row; returns how many. A file appears when it is complete, stdout gets each row at
    once."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in rows)
    count = 0
    if out is None:
        for line in lines:
            show_json(line)
            count += 1
    else:
        with atomically(out) as temporary, temporary.open("w", encoding="utf-8") as stream:
            for line in lines:
                stream.write(line + "\n")
                count += 1
    return count


def scored(model: RewardModel, path: Path, *, best: bool) -> Iterator[dict[str, Any]]:
    """Each row of `path` with its scores, in order. DataError, with the line, at the first wrong row.

    best: keep only the response with the highest score (the first of equal ones), as `response` with its `score`.
    """
    several = len(model.members) > 1
    added = ("score", "scores", *(("members", "spread") if several else ()))
    rows = read_rows(path, model.chat, reach=reach_of(model.roles.base.model.config), added=added)
    done = 0
    while block := list(islice(rows, BLOCK)):
        scores = score_groups(
            model.roles,
            [row.candidates for row in block],
            tokens_per_microbatch=model.tokens_per_microbatch,
            description=f"rows {done + 1} to {done + len(block)}",
            ensemble=model.ensemble,
        )
        for row, group in zip(block, scores, strict=True):
            yield with_scores(row, group, best=best, several=several)
        done += len(block)


def require_rows(path: Path) -> None:
    """DataError unless the file exists and has a row."""
    if not path.is_file():
        raise DataError(f"{why_no_file(path)}. Pass a .jsonl file of {{prompt, response}} rows.")
    if reader_of(path) is not read_jsonl:
        raise DataError(
            f"{path}: this command reads .jsonl files only, also as .gz or .zst. Write the rows into one, a JSON "
            "object a line."
        )
    if next(iter(read_jsonl(path)), None) is None:
        raise DataError(f"{path}: no rows. The file is empty.")


def read_rows(path: Path, chat: Chat, *, reach: Reach | None, added: Sequence[str]) -> Iterator[Row]:
    """Rows as tokens. reach: how many tokens the model can take, prompt and response together. added: the keys that
    the rows will get."""
    for line, content in read_jsonl(path):
        origin = Origin(str(path), line)
        if not isinstance(content, dict):
            raise DataError(f"{origin}: expected an object with keys, found {type(content).__name__}.")
        responses = responses_of(content, origin, added)
        prompts = list(table.build(content, Prompt, origin))
        if len(prompts) != 1:
            raise DataError(
                f"{origin}: expected one prompt in the row, found {len(prompts)}. Split the row, or remove it."
            )
        candidates = chat.candidates(prompts[0], responses)
        tokens = max(map(len, candidates))
        if reach is not None and tokens > reach.tokens:
            raise DataError(
                f"{origin}: prompt and response are {tokens} tokens, and {reach.reason}. Shorten or remove the row."
            )
        yield Row(content=content, responses=responses, candidates=candidates)


def responses_of(content: dict[str, Any], origin: Origin, added: Sequence[str]) -> list[str]:
    """The texts to score. DataError if the row has something else, or a key that would be added.

    An empty response is scored too: it is a turn that ends at once.
    """
    if ("response" in content) == ("responses" in content):
        raise DataError(f"{origin}: a row needs 'response' or 'responses', one of the two; found {sorted(content)}.")
    responses = content["responses"] if "responses" in content else [content["response"]]
    if not isinstance(responses, list) or not responses or not all(isinstance(text, str) for text in responses):
        key, expected = (
            ("responses", "a list of texts, one at least") if "responses" in content else ("response", "text")
        )
        raise DataError(f"{origin}: '{key}' must be {expected}.")
    taken = set(added) & content.keys()
    if taken:
        raise DataError(f"{origin}: the row has a '{min(taken)}' already. Rename that key.")
    return responses


def with_scores(row: Row, group: GroupScores, *, best: bool, several: bool) -> dict[str, Any]:
    """The row with the scores of its responses. best: with its best response alone. several: with each member's."""
    if "responses" in row.content and not best:
        members = {"members": group.members, "spread": group.spread} if several else {}
        return {**row.content, "scores": group.scores, **members}
    place = best_of(group.scores)
    added: dict[str, Any] = {"score": group.scores[place]}
    if several:
        alone = {name: scores[place] for name, scores in group.members.items()}
        added |= {"members": alone, "spread": group.spread[place]}
    if not best:
        return {**row.content, **added}
    kept = {key: value for key, value in row.content.items() if key not in ("response", "responses")}
    return {**kept, "response": row.responses[place], **added}


def best_of(scores: Sequence[float]) -> int:
    """The place of the highest score, the first of equal ones."""
    return max(range(len(scores)), key=lambda index: (scores[index], -index))
