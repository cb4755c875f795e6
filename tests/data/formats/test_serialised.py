"""Messages that came as a text become messages or are refused; texts that only look like it stay texts."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from data.formats.table import build
from data.records import Demonstration, Message, Origin, Prompt, Ranking
from data.select.dropped import DroppedRows
from data.select.sources import Source, records_of
from onebase.errors import DataError

ORIGIN = Origin("f", 1)
SAID = 'It\'s "so", {a} [b]\n\\d é'


def turn(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def as_sharegpt(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[message["role"]], "value": message["content"]} for message in messages]


def writings(messages: list[dict[str, str]]) -> list[str]:
    """The ways in which tools write a list of messages into a cell."""
    lines = "\n ".join(map(repr, messages))
    texts = [json.dumps(messages), repr(messages), json.dumps(messages, indent=2), json.dumps(json.dumps(messages))]
    texts += [f"[{lines}]", f"array([{', '.join(map(repr, messages))}], dtype=object)", f" {messages!r}\n"]
    texts += [json.dumps({"messages": messages}), json.dumps(as_sharegpt(messages)), repr(as_sharegpt(messages))]
    texts += [json.dumps([json.dumps(message) for message in messages])]
    return [*texts, json.dumps(messages[0])] if len(messages) == 1 else texts


ASKED = [turn("user", SAID)]
CHOSEN, REJECTED = ([turn("user", SAID), turn("assistant", answer)] for answer in ("A", "B"))


def single(row: Any, kind: Any) -> Any:
    (record,) = build(row, kind, ORIGIN)
    return record


def test_messages_written_as_text_are_read_as_messages():
    prompt = (Message("user", SAID),)
    for written in writings(ASKED):
        assert single({"prompt": written, "response": "A"}, Demonstration).prompt.messages == prompt, written
        assert single({"prompt": written}, Prompt).messages == prompt
    for chosen, rejected in zip(writings(CHOSEN), writings(REJECTED), strict=True):
        for row in ({"prompt": SAID}, {}, {"prompt": json.dumps(ASKED)}):
            ranking = single({**row, "chosen": chosen, "rejected": rejected}, Ranking)
            assert (ranking.prompt.messages, ranking.responses) == (prompt, ("A", "B")), chosen
    for written in writings(CHOSEN):
        assert single({"messages": written}, Demonstration).response == "A", written
        assert single({"conversations": written}, Demonstration).prompt.messages == prompt, written
    for written in writings([turn("assistant", "A")]):
        for key, row in {
            "response": {"prompt": "Hi"},
            "completion": {"prompt": "Hi"},
            "answer": {"question": "Hi"},
        }.items():
            assert single({**row, key: written}, Demonstration).response == "A", written


def test_messages_written_as_text_are_refused_where_they_cannot_be_read():
    damaged = [writing[:-4] + end for writing in writings(ASKED)[:2] for end in ("", "oops}]")]
    for written in damaged:
        for key in ("prompt", "messages", "chosen"):
            row = {**{"prompt": "Hi", "response": "A"}, **({"chosen": "A", "rejected": "B"} if key == "chosen" else {})}
            row = {"messages": written} if key == "messages" else {**row, key: written}
            with pytest.raises(
                DataError, match=rf"f:1: '{key}' (is a list of messages written as text|must be a list)"
            ):
                single(row, Ranking if key == "chosen" else Demonstration)
    whole = [*writings(ASKED), *writings(CHOSEN)]
    for written in [*whole, *damaged]:
        rows = [{"instruction": written, "output": "A"}, {"question": written, "answer": "A"}]
        rows += [{"prompt": "Hi", "response": written}, {"inputs": written, "targets": "A"}]
        rows += [{"messages": [turn("user", written), turn("assistant", "A")]}, {"prompt": "Hi", "completion": written}]
        rows += [{"instruction": "Sort.", "input": written, "output": "A"}, {**ROW, "system": written}]
        for row in rows:
            with pytest.raises(DataError, match=r"'\w+' is a list of messages written as text, found "):
                for record in build(row, Demonstration, ORIGIN, report=None):
                    raise AssertionError(record)
        with pytest.raises(DataError, match="'responses' is a list of messages written as text"):
            list(build({"prompt": "Hi", "responses": [written, "B"], "tiers": [0, 1]}, Ranking, ORIGIN))


ROW = {"prompt": "Hi", "response": "A"}

TEXTS = [
    "[1, 2, 3]",
    "['a', 'b']",
    '{"name": "Ann", "role": "admin", "content": "x"}',
    '{"from": "Paris", "to": "Rome", "value": 3}',
    '[{"role": "nurse", "content": "x"}]',
    '{"model": "m", "messages": [{"role": "user", "content": "Hi"}]}',
    '{"role": "user"}',
    "What is the role in " + json.dumps(ASKED),
    "What is the role in " + repr(ASKED) + "?",
    json.dumps(ASKED) + "\nWhat is the role here?",
    repr(ASKED) + "\nWhat is the role here?",
    json.dumps(ASKED) + " is JSON. [1] says so.",
    "[link](a) 'role': 'user', 'content': 'x'",
    '"Be brief", she said.',
    "[" * 3000,
    "array(1)",
]


def test_texts_that_are_no_messages_stay_as_they_are():
    for text in TEXTS:
        assert single({"prompt": text, "response": text}, Demonstration) == Demonstration(
            Prompt((Message("user", text),), ORIGIN), text
        ), text
        assert single({"instruction": text, "input": "", "output": text}, Demonstration).response == text
        assert single({"prompt": text, "chosen": text, "rejected": "B"}, Ranking).responses == (text, "B")
        assert single({"messages": [turn("user", text), turn("assistant", text)]}, Demonstration).response == text


def test_rows_of_csv_with_lists_in_their_cells_are_read(tmp_path: Path):
    annotations = {aspect: {"Rating": "5"} for aspect in ("instruction_following", "honesty", "truthfulness")}
    completions = [
        {"model": name, "response": name, "annotations": {**annotations, "helpfulness": {"Rating": rating}}}
        for name, rating in (("A", "5"), ("B", "1"))
    ]
    answers = [{"answer": name, "model": name, "rank": rank} for name, rank in (("A", 1.0), ("B", 2.0))]
    rows: list[dict[str, Any]] = [
        {"instruction": SAID, "completions": completions},
        {"prompt": f"\n\nHuman: {SAID}\n\nAssistant: ", "answers": answers},
        {"prompt": SAID, "responses": ["A", "B"], "tiers": [0, 1]},
        {"prompt": ASKED, "chosen": CHOSEN, "rejected": REJECTED},
    ]
    for number, row in enumerate(rows):
        for write in (json.dumps, repr):
            path = tmp_path / f"{number}.csv"
            with path.open("w", encoding="utf-8", newline="") as stream:
                writer = csv.DictWriter(stream, list(row))
                writer.writeheader()
                writer.writerow({key: value if isinstance(value, str) else write(value) for key, value in row.items()})
            (ranking,) = records_of(Source(source=str(path)), Ranking, DroppedRows())
            assert (ranking.prompt.user_text, ranking.responses, ranking.tiers) == (SAID, ("A", "B"), (0, 1))


def test_what_is_broken_inside_a_written_list_is_not_let_in():
    for broken in ("\\u0000", "\\ud800"):
        with pytest.raises(DataError):
            list(
                build(
                    {"prompt": f'[{{"role": "user", "content": "{broken}"}}]', "response": "A"}, Demonstration, ORIGIN
                )
            )
