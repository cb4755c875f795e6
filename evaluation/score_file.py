"""`onebase score`: the reward model's score of any response, a line of JSON in, a line of JSON out.

    {"prompt": "...", "response": "..."}            ->  the same row with "score": 0.41
    {"prompt": "...", "responses": ["...", ...]}    ->  the same row with "scores": [0.41, -1.2, ...]

The prompt is text, or a list of messages. Rows are read, scored in micro-batches and written a block at a time, so that
a file of any size takes the same memory.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from data.chat import Chat
from data.formats import table
from data.readers import read_jsonl
from data.records import Origin, Prompt
from data.writing import atomically
from evaluation.reward_eval import RewardModel, score_groups
from onebase.errors import DataError
from onebase.rankings import Candidates

BLOCK = 256
"""Rows that are scored together: rows of similar length then share a micro-batch."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the file, as given and as tokens."""

    content: dict[str, Any]
    responses: list[str]
    candidates: Candidates


def write_scores(model: RewardModel, path: Path, out: Path | None, *, best: bool) -> int:
    """A line for each row of `path`, to stdout or to a file that appears when all of it is there; returns how many."""
    lines = (json.dumps(row, ensure_ascii=False, allow_nan=False) for row in scored(model, path, best=best))
    count = 0
    if out is None:
        for line in lines:
            print(line, flush=True)
            count += 1
    else:
        with atomically(out) as temporary, temporary.open("w", encoding="utf-8") as stream:
            for line in lines:
                stream.write(line + "\n")
                count += 1
    return count


def scored(model: RewardModel, path: Path, *, best: bool) -> Iterator[dict[str, Any]]:
    """Each row of `path` with its scores, in order. DataError, with its line, at the first row that is wrong.

    best: of each row only the response that scores highest (the first of equal ones), as `response` with its `score`.
    """
    longest = model.roles.base.model.config.get_text_config().max_position_embeddings
    rows = read_rows(path, model.chat, longest=longest)
    done = 0
    while block := list(islice(rows, BLOCK)):
        scores = score_groups(
            model.roles,
            [row.candidates for row in block],
            tokens_per_microbatch=model.tokens_per_microbatch,
            shared=model.shared,
            description=f"rows {done + 1} to {done + len(block)}",
        )
        for row, own in zip(block, scores, strict=True):
            yield with_best(row, own) if best else with_scores(row, own)
        done += len(block)
    if not done:
        raise DataError(f"{path}: no rows. The file is empty.")


def read_rows(path: Path, chat: Chat, *, longest: int) -> Iterator[Row]:
    """Rows as tokens. longest: tokens of prompt and response together that the model has positions for."""
    if not path.is_file():
        raise DataError(f"{path}: there is no such file. Pass a .jsonl file of {{prompt, response}} rows.")
    for line, content in read_jsonl(path):
        origin = Origin(str(path), line)
        if not isinstance(content, dict):
            raise DataError(f"{origin}: expected an object with keys, found {type(content).__name__}.")
        responses = responses_of(content, origin)
        asked = list(table.build(content, Prompt, origin))
        if len(asked) != 1:
            raise DataError(f"{origin}: the row gives {len(asked)} prompts, and one is expected. Split it, or drop it.")
        prompt = chat.prompt_ids(asked[0])
        candidates = Candidates(prompt, tuple(chat.response_ids(response) for response in responses))
        tokens = max(map(len, candidates.sequences))
        if tokens > longest:
            raise DataError(
                f"{origin}: prompt and response are {tokens} tokens, and the model has {longest} positions. "
                "Shorten or remove the row."
            )
        yield Row(content=content, responses=responses, candidates=candidates)


def responses_of(content: dict[str, Any], origin: Origin) -> list[str]:
    """What is to be scored; DataError when it is not text, or when the row already has what would be added.

    An empty response is scored as what it is: a turn that ends at once.
    """
    if ("response" in content) == ("responses" in content):
        raise DataError(f"{origin}: a row needs 'response' or 'responses', one of the two; found {sorted(content)}.")
    one = "response" in content
    given = [content["response"]] if one else content["responses"]
    if not isinstance(given, list) or not given or not all(isinstance(response, str) for response in given):
        key, expected = ("response", "text") if one else ("responses", "a list of texts, one at least")
        raise DataError(f"{origin}: '{key}' must be {expected}.")
    taken = {"score", "scores"} & content.keys()
    if taken:
        raise DataError(f"{origin}: the row has a '{min(taken)}' already. Rename it, so that it is not lost.")
    return given


def with_scores(row: Row, scores: Sequence[float]) -> dict[str, Any]:
    return {**row.content, "score": scores[0]} if "response" in row.content else {**row.content, "scores": scores}


def with_best(row: Row, scores: Sequence[float]) -> dict[str, Any]:
    """Best of n."""
    place = max(range(len(scores)), key=lambda index: (scores[index], -index))
    kept = {key: value for key, value in row.content.items() if key not in ("response", "responses")}
    return {**kept, "response": row.responses[place], "score": scores[place]}
