"""Conversations, whatever they are written as, give one demonstration for each reply of the assistant."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.formats.table import build
from data.records import Demonstration, Message, Origin, Prompt, Ranking
from onebase.errors import DataError

ORIGIN = Origin("f", 1)
# No mark of a transcript, and no white space around it, which transcripts take off.
WORDS = st.text("abcÄ東 .,:|[]\n", min_size=1, max_size=12).map(str.strip).filter(bool)
DIALOGUES = st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=4)
SYSTEMS = st.none() | WORDS


def as_messages(system: str | None, turns: list[tuple[str, str]]) -> dict[str, Any]:
    messages = [{"role": "system", "content": system}] if system else []
    for question, answer in turns:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages}


def as_sharegpt(system: str | None, turns: list[tuple[str, str]]) -> dict[str, Any]:
    turns_said = [{"from": "system", "value": system}] if system else []
    for question, answer in turns:
        turns_said += [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
    return {"id": "a_0", "conversations": turns_said}


def as_baize(system: str | None, turns: list[tuple[str, str]]) -> dict[str, Any]:
    dialogue = "".join(f"[|Human|] {question}\n[|AI|] {answer}\n" for question, answer in turns)
    return {"topic": "t", "input": f"The conversation between human and AI assistant.\n{dialogue}[|Human|] "}


def demonstrations(system: str | None, turns: list[tuple[str, str]]) -> list[Demonstration]:
    """By the definition: each answer, after all that was said before it."""
    records = []
    for index, (question, answer) in enumerate(turns):
        before = [Message("system", system)] if system else []
        for earlier_asked, earlier in turns[:index]:
            before += [Message("user", earlier_asked), Message("assistant", earlier)]
        records.append(Demonstration(Prompt((*before, Message("user", question)), ORIGIN), answer))
    return records


@settings(max_examples=100, deadline=None)
@given(system=SYSTEMS, turns=DIALOGUES)
def test_every_reply_is_a_demonstration_with_all_that_was_said_before(system: str | None, turns: list[tuple[str, str]]):
    for row in (as_messages(system, turns), as_sharegpt(system, turns)):
        assert list(build(row, Demonstration, ORIGIN)) == demonstrations(system, turns)
        (prompt,) = build(row, Prompt, ORIGIN)
        assert prompt == demonstrations(system, turns)[-1].prompt
    assert list(build(as_baize(None, turns), Demonstration, ORIGIN)) == demonstrations(None, turns)


@settings(max_examples=100, deadline=None)
@given(turns=DIALOGUES, other=WORDS)
def test_two_dialogues_are_a_ranking_of_their_last_replies(turns: list[tuple[str, str]], other: str):
    if other == turns[-1][1]:
        other += "!"
    last = demonstrations(None, turns)[-1]

    def transcript(answer: str) -> str:
        turns_said = [*turns[:-1], (turns[-1][0], answer)]
        return "".join(f"\n\nHuman: {question}\n\nAssistant: {reply}" for question, reply in turns_said)

    (ranking,) = build({"chosen": transcript(last.response), "rejected": transcript(other)}, Ranking, ORIGIN)
    assert ranking == Ranking(last.prompt, (last.response, other), (0, 1))


@pytest.mark.parametrize("word", ["Human: hello", "\nHuman: hello"])
def test_only_anthropics_marks_make_a_dialogue_of_a_prompt(word: str):
    (prompt,) = build({"prompt": word, "response": "x"}, Prompt, ORIGIN)
    assert prompt.messages == (Message("user", word),)
    (prompt,) = build({"prompt": f"\n\nHuman: {word}\n\nAssistant:", "response": "x"}, Prompt, ORIGIN)
    assert prompt.messages == (Message("user", word.strip()),)


@pytest.mark.parametrize("blank", ["", " \n"])
def test_an_empty_system_message_is_none(blank: str):
    turns = [("Hi", "Hello."), ("Why?", "So.")]
    rows = [as_messages("x", turns), as_sharegpt("x", turns)]
    rows[0]["messages"][0]["content"] = blank
    rows[1]["conversations"][0]["value"] = blank
    rows.append({**as_messages(None, turns), "system": blank})
    for row in rows:
        assert list(build(row, Demonstration, ORIGIN)) == demonstrations(None, turns)
    listed = {"prompt": [{"role": "system", "content": blank}, {"role": "user", "content": "Hi"}], "response": "Hello."}
    assert list(build(listed, Demonstration, ORIGIN)) == demonstrations(None, turns[:1])


def test_weights_belong_to_their_replies_also_behind_an_empty_system_message():
    row = as_messages("x", [("Hi", "Hello."), ("Why?", "So.")])
    row["messages"][0]["content"] = ""
    row["messages"][2]["weight"] = 0
    (demonstration,) = build(row, Demonstration, ORIGIN)
    assert isinstance(demonstration, Demonstration) and demonstration.response == "So."


def test_a_conversation_of_an_empty_system_message_alone_is_refused():
    with pytest.raises(DataError, match="f:1: "):
        list(build({"messages": [{"role": "system", "content": ""}]}, Prompt, ORIGIN))
