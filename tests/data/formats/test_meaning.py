"""Keys that change a row's meaning are read or refused, however they are spelled and wherever they stand."""

import re
from pathlib import Path
from typing import Any

import pytest

from data.formats.key_groups import ADJECTIVES, GROUPS, group_of
from data.formats.table import FORMATS, build_all
from data.formats.unread import DISTINCT, Unread
from data.records import Demonstration, Message, Prompt, Ranking, Record
from onebase.errors import DataError

ASKED, ANSWERED = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."}
CHAT = {"messages": [ASKED, ANSWERED]}
SHAREGPT = {"conversations": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello."}]}
PLAIN = {"prompt": "Hi", "response": "Hello."}
ALPACA = {"instruction": "Hi", "input": "", "output": "Hello."}
PAIR = {"prompt": "Hi", "chosen": "Hello.", "rejected": "No."}
ROWS: list[dict[str, Any]] = [CHAT, SHAREGPT, PLAIN, ALPACA]


def read(row: Any, kind: Any = Demonstration) -> tuple[list[Any], list[str]]:
    """The records of a row, and why something was left out."""
    left_out: list[str] = []
    records: list[Record] = list(build_all(iter([(1, row)]), kind, "f", note=lambda reason, _: left_out.append(reason)))
    return records, left_out


def refusal(row: Any, kind: Any = Demonstration) -> str:
    with pytest.raises(DataError) as caught:
        read(row, kind)
    assert str(caught.value).startswith("f:1: "), caught.value
    return str(caught.value)


def spellings(key: str) -> list[str]:
    words = key.split("_")
    return [key, key.upper(), "-".join(words), words[0] + "".join(map(str.capitalize, words[1:])), " ".join(words)]


def test_every_key_of_the_list_is_known_in_every_spelling():
    for group in GROUPS:
        for key in group.keys:
            for spelled in spellings(key):
                recognised = group_of(spelled)
                assert recognised is not None and recognised.rule == group.rule, spelled
    for key in ("id", "source", "model", "language", "prompt_id", "is_classification", "text", "url", "cot_type"):
        assert group_of(key) is None, key


def test_the_documents_list_is_this_list():
    page = (Path(__file__).parents[3] / "docs" / "data.md").read_text(encoding="utf-8")
    section = page.split("## Keys that change a row's meaning\n")[1].split("\n## ")[0]
    cells = [line.split(" | ") for line in section.splitlines() if line.startswith("| ")][1:]
    assert [(name.removeprefix("| "), tuple(re.findall("`(.+?)`", keys))) for name, keys, _ in cells] == [
        (group.name, group.keys) for group in GROUPS
    ]
    ending = section[section.index("Keys with `is`") :]
    for adjective in ADJECTIVES:
        assert f"`{adjective}`" in ending


def test_no_key_stands_in_two_groups():
    keys = [key for group in GROUPS for key in group.keys]
    assert len(keys) == len(set(keys))


CONTENT = {
    "images": ["cat.jpg"],
    "image": "coco/1.jpg",
    "videos": [{"bytes": "x"}],
    "audio": {"path": "a.wav"},
    "tools": '[{"name": "weather"}]',
    "functions": [{"name": "weather", "parameters": {}}],
    "toolCalls": [{"id": "1"}],
    "documents": [{"title": "T", "text": "t"}],
    "choices": {"text": ["Sky", "Blood"], "label": ["A", "B"]},
    "options": ["Sky", "Blood"],
    "reasoning_content": "Let me think.",
    "Thinking": "Let me think.",
    "reasoning": "Let me think.",
    "passage": "It rains.",
    "chat_template_kwargs": {"custom_instructions": "Be brief.", "enable_thinking": False},
}


def test_content_beside_a_row_is_refused_when_it_is_filled():
    for row in ROWS:
        for key, value in CONTENT.items():
            message = refusal({**row, key: value})
            assert f"'{key}'" in message and "is not read" in message and message.endswith(".")
            for empty in (None, "", " ", [], {}, "[]", "null", [""], {"text": []}, float("nan"), False):
                assert len(read({**row, key: empty})[0]) == 1, (key, empty)
    for key in ("images", "tools", "choices", "documents"):
        assert f"'{key}'" in refusal({**PAIR, key: CONTENT[key]}, Ranking)
        assert f"'{key}'" in refusal({"prompt": "<image>Who is this?", key: CONTENT[key]}, Prompt)
    assert "'A' (choices" in refusal({"question": "Red?", "A": "Sky", "B": "Blood", "answer": "B"})
    assert len(read({**PLAIN, "reasoning": "Let me think."}, Prompt)[0]) == 1, "an answer's thoughts are no prompt's"


def test_content_within_a_turn_or_another_part_is_refused():
    turn = {**CONTENT, "name": "Bob", "refusal": "I cannot.", "tool_call_id": "1", "reasoning-content": "Hm."}
    for key, value in turn.items():
        assert f"message 2: '{key}'" in refusal({"messages": [ASKED, {**ANSWERED, key: value}]})
        human, gpt = SHAREGPT["conversations"]
        assert f"'{key}'" in refusal({"conversations": [{**human, key: value}, gpt]}, Prompt)
        assert f"'{key}'" in refusal({"prompt": [{**ASKED, key: value}], "response": "Hello."})
        ends = {name: [ASKED, {**ANSWERED, "content": name, key: value}] for name in ("chosen", "rejected")}
        assert f"'{key}'" in refusal(ends, Ranking)
        if key != "passage":
            part = {"input": "b", "output": "b", key: value}
            assert f"'{key}'" in refusal({"instruction": "Sort.", "instances": [part]})
    part = {"type": "text", "text": "Hi", "image": "cat.jpg"}
    assert "'image'" in refusal({"messages": [{"role": "user", "content": [part]}, ANSWERED]})
    assert "calls a tool" in refusal({"messages": [ASKED, {**ANSWERED, "function_call": {"name": "f"}}]})


def test_a_context_that_the_prompt_holds_already_is_passed_over():
    assert len(read({"prompt": "It rains. What does it do?", "context": "It rains.\n", "response": "Rain."})[0]) == 1
    assert "'input'" in refusal({"prompt": "What does it do?", "input": "It rains.", "response": "Rain."})


def test_what_a_text_that_is_read_holds_already_is_passed_over_and_nothing_else_is():
    question = {"role": "user", "content": "Which, by It rains? A) red B) blue sky"}
    answered = {"role": "assistant", "content": "<think>\nHm, hm.\n</think>\nB"}
    chat = {"messages": [question, answered]}
    beside: list[tuple[str, Any]] = [("context", "It rains"), ("contexts", ["It rains"]), ("reasoning", "Hm, hm.\n")]
    beside += [("choices", ["red", "blue sky"]), ("options", {"A": "red", "B": "blue sky"})]
    beside += [("choices", {"text": ["red", "blue sky"], "label": ["A", "B"]}), ("article", "It rains")]
    for key, value in beside:
        assert len(read({**chat, key: value})[0]) == 1, (key, value)
        assert len(read({**chat, key: value}, Prompt)[0]) == 1, (key, value)
    assert len(read({"messages": [question, {**answered, "reasoning_content": "Hm, hm."}]})[0]) == 1
    assert len(read({"inputs": "Q?\nOPTIONS:\n- yes\n- no", "targets": "no", "options": ["yes", "no"]})[0]) == 1
    apart: list[tuple[str, Any]] = [("choices", ["blue sky", "red"]), ("choices", ["re", "blue"]), ("options", [1, 2])]
    for key, value in apart:
        assert f"'{key}'" in refusal({**chat, key: value}), value
    # A text that is not read holds nothing, nor does a letter.
    for more in ({"raw": "It snows."}, {"passage": "It snows."}, {"notes": ["It snows."]}):
        assert "is not read" in refusal({**PLAIN, "context": "It snows.", **more})
    assert "'context'" in refusal({**PLAIN, "prompt": "Is A right?", "context": "A"})


def test_what_has_the_name_of_a_verdict_and_is_none_is_passed_over():
    facets: list[tuple[str, Any]] = [
        ("label", {"ability_en": ["logic"], "cate": []}),
        ("label", "quality:4,toxicity:0"),
    ]
    for row in (CHAT, SHAREGPT, ALPACA):
        for key, value in facets:
            assert len(read({**row, key: value})[0]) == 1
        for key in ("chosen", "rejected"):
            assert len(read({**row, key: "Another reply."})[0]) == 1
        assert "'label' must be" in refusal({**row, "label": {"good": False}})


BAD: list[tuple[str, Any]] = [
    *((key, False) for key in ("chosen", "keep", "accept", "success", "is_complete", "is_helpful", "helpful")),
    *((key, True) for key in ("rejected", "truncated", "is_truncated", "deleted", "spam", "discarded", "is_error")),
    *(("finish_reason", "length"), ("stop_reason", "max_tokens"), ("status", "Discarded"), ("quality", "very poor")),
    *((key, False) for key in ("label", "kto_tag", "is_safe", "is_correct", "isResponse0Safe", "verified", "score")),
    *(("label", value) for value in (0, 0.0, -1, "False", "no", "bad", "thumbs down", "unsafe")),
    *((key, True) for key in ("is_harmful", "unsafe", "toxic", "thumbs-down", "masked", "response_is_wrong")),
    *((key, 0) for key in ("weight", "loss_weight", "train", "loss", "correct", "Thumbs_Up", "loss_mask")),
    *(("feedback", "negative"), ("rating", "Thumbs Down"), ("response_harm_label", "harmful")),
]
FINE: list[tuple[str, Any]] = [
    *((key, True) for key in ("label", "kto_tag", "is_safe", "is_correct", "verified", "train", "loss", "learn")),
    *(("label", value) for value in (1, 1.0, "True", "yes", "good", "safe", None, "", float("nan"))),
    *((key, False) for key in ("is_harmful", "unsafe", "toxic", "thumbs_down", "masked", "no_loss")),
    *(("score", 4.5), ("score", -3.2), ("reward", 12), ("feedback", "Well put."), ("weight", 1.0), ("weight", "1")),
    *(("rating", [9.0, 8.0]), ("mask", "User"), ("reasoning", "on")),
    *(("finish_reason", "stop"), ("status", "finished_successfully"), ("quality", "excellent"), ("truncated", 0)),
    *(("chosen", True), ("rejected", False)),
]


def test_an_answer_that_somebody_rejected_is_no_demonstration():
    for row in ROWS:
        # `thumbs-response` reads the label of such a row by rules of its own.
        label_keys = {"label"} if row is PLAIN else set[str]()
        for key, value in (pair for pair in BAD if pair[0] not in label_keys):
            records, left_out = read({**row, key: value})
            assert records == [] and left_out == [f"'{key}' says that this is not to be imitated"], (key, value)
        for key, value in (pair for pair in FINE if pair[0] not in label_keys):
            records, left_out = read({**row, key: value})
            assert [record.response for record in records] == ["Hello."] and left_out == [], (key, value)
    for key, value in BAD:
        assert len(read({**PLAIN, key: value}, Prompt)[0]) == 1, "a verdict on the answer says nothing of the prompt"


def test_a_verdict_that_cannot_be_read_is_refused():
    beside = [("label", "sports"), ("label", 3), ("is_correct", "B"), ("weight", 0.5), ("train", "maybe")]
    beside += [("is_correct", [False]), ("verified", [False, False]), ("label", {"good": False})]
    beside += [("kto_tag", [True]), ("loss", 1.37), ("weights", [0, 1]), ("label", 10**400)]
    for row in (CHAT, SHAREGPT, ALPACA):
        for key, value in beside:
            assert f"'{key}' must be 0 or 1, true or false" in refusal({**row, key: value})
        for value in (0, -1.0, "0"):
            assert "'score' is" in refusal({**row, "score": value})
    assert "does not say which response it is about" in refusal({**PAIR, "is_safe": False}, Ranking)
    assert len(read({**PAIR, "is_safe": True, "score": 0}, Ranking)[0]) == 1


def test_a_turn_that_is_marked_is_shown_and_not_learned():
    marks = [("weight", 0), ("weight", 0.0), ("train", False), ("loss", False), ("loss_weight", 0), ("learn", False)]
    marks += [("masked", True), ("Weight", "0"), ("is_correct", False), ("trainable", False), ("ignore", True)]
    for key, value in marks:
        for turns, names in ((CHAT["messages"], ("role", "content")), (SHAREGPT["conversations"], ("from", "value"))):
            holder = "messages" if names[0] == "role" else "conversations"
            question, answered = turns
            again = {**answered, names[1]: "Again.", key: not value if isinstance(value, bool) else 1}
            system = {names[0]: "system", names[1]: "", key: None}
            turns_said = [question, {**answered, key: value}, question, again]
            beside = {"system": "Be brief."}
            for row in (
                {holder: [system, *turns_said], **beside},
                {holder: turns_said, **beside},
                {holder: [system, *turns_said]},
            ):
                records, _ = read(row)
                assert [record.response for record in records] == ["Again."], (key, value)
                assert Message("assistant", "Hello.") in records[0].prompt.messages
            assert "nothing to imitate" in refusal({holder: [question, {**answered, key: value}]})
        instances = [{"input": "b", "output": "b", key: value}, {"input": "c", "output": "c"}]
        records, left_out = read({"instruction": "Sort.", "instances": instances})
        assert [record.response for record in records] == ["c"] and len(left_out) == 1
        ends = {name: [ASKED, {**ANSWERED, "content": name, key: value}] for name in ("chosen", "rejected")}
        assert "marked not to be learned" in refusal(ends, Ranking)


def test_a_history_is_the_turns_before():
    before = (Message("user", "France?"), Message("assistant", "Paris."))
    forms: list[Any] = [
        [["France?", "Paris."]],
        "[['France?', 'Paris.']]",
        '[["France?", "Paris."]]',
        [{"role": "user", "content": "France?"}, {"role": "assistant", "content": "Paris."}],
    ]
    rows = [{"instruction": "Italy?", "input": "", "output": "Rome."}, {"prompt": "Italy?", "response": "Rome."}]
    rows += [{"question": "Italy?", "answer": "Rome."}, {"instruction": "Italy?", "output": "Rome."}]
    for history in forms:
        for row in rows:
            ((demonstration,), _) = read({**row, "history": history, "system": "Be brief."})
            assert demonstration.prompt.messages == (Message("system", "Be brief."), *before, Message("user", "Italy?"))
        ((pair,), _) = read({**PAIR, "history": history}, Ranking)
        assert pair.prompt.messages == (*before, Message("user", "Hi"))
    for history in ("We spoke of France.", [["France?"]], [["France?", 1]], {"a": 1}):
        assert "'history' must be" in refusal({**PLAIN, "history": history})
    for row in (CHAT, SHAREGPT, {"prompt": [ASKED], "response": "x"}, {"prompt": "\n\nHuman: Hi\n\nAssistant:"}):
        assert "'history'" in refusal({**row, "history": [["France?", "Paris."]]}, Prompt)
        assert "'history'" in refusal({**row, "history": 0}, Prompt)


def test_a_system_prompt_beside_any_conversation_is_read():
    rows = [{"prompt": [ASKED]}, {"prompt": "\n\nHuman: Hi\n\nAssistant:"}, CHAT, SHAREGPT]
    rows.append({"context": [ASKED], "response1": "a", "response2": "b", "overall_preference": 1})
    rows.append({key: [ASKED, {**ANSWERED, "content": key}] for key in ("chosen", "rejected")})
    rows.append({key: f"\n\nHuman: Hi\n\nAssistant: {key}" for key in ("chosen", "rejected")})
    for row in rows:
        ((prompt,), _) = read({**row, "system": "Be brief."}, Prompt)
        assert prompt.messages == (Message("system", "Be brief."), Message("user", "Hi")), row


def test_rows_that_are_joined_are_checked_too():
    rows = [
        {"prompt": "Hi", "completion": text, "label": up, "tools": [1] * up}
        for text, up in (("a", 1 > 0), ("b", 1 < 0))
    ]
    refusals: list[str] = []
    list(build_all(enumerate(rows, start=1), Ranking, "f", report=lambda error: refusals.append(str(error))))
    assert len(refusals) == 1 and refusals[0].startswith("f:1: 'tools' (tools) is a list of 1")


def test_rows_that_are_nested_deeply_end_in_no_traceback():
    deep: Any = 1
    for level in range(900):
        deep = [deep] if level % 2 else {"a": deep}
    assert "'tools' (tools) is a list of 1" in refusal({**PLAIN, "tools": deep})
    unread = Unread()
    list(build_all(iter([(1, {**PLAIN, "more": deep})]), Demonstration, "f", unread=unread))
    assert unread.summary() == "not read: more (1 row)"


def test_formats_go_on_reading_their_own_keys():
    for name, keys in {
        "shp": "history",
        "dolly": "context",
        "p3-choices": "is_correct weight",
        "reddit": "score",
    }.items():
        assert set(keys.split()) <= FORMATS[name].reads
    row = {"instruction": "Explain bees.", "response": "Bees see.", "score": 0}
    assert len(read(row)[0]) == 1


def test_keys_of_which_nothing_was_made_are_counted():
    rows = [
        {**CHAT, "source": "a", "id": 1},
        {
            **SHAREGPT,
            "source": "b",
            "id": None,
            "conversations": [{**turn, "at": 1} for turn in SHAREGPT["conversations"]],
        },
        {**PLAIN, "label": False, "source": "c"},
        {"prompt": "", "response": "x", "source": "d"},
        {**PLAIN, "meta": {"task": "t"}, "system": "s", "label": True},
    ]
    unread = Unread()
    list(
        build_all(
            enumerate(rows, start=1), Demonstration, "f", report=lambda _: None, note=lambda *_: None, unread=unread
        )
    )
    assert dict(unread.rows) == {"source": 2, "id": 1, "conversations[].at": 1}
    assert unread.summary() == "not read: source (2 rows), id (1 row), conversations[].at (1 row)"


def test_what_is_said_of_unread_keys_stays_short():
    unread = Unread()
    rows = [(line, {**PLAIN, f"{line}\x1b\n" * 200: 1}) for line in range(1, DISTINCT + 101)]
    assert len(list(build_all(iter(rows), Demonstration, "f", unread=unread))) == DISTINCT + 100
    assert len(unread.rows) == DISTINCT
    assert len(unread.summary()) < 3000 and unread.summary().isprintable()
