"""Each format's fixture, in its publisher's own schema, becomes the records and the refusals written down beside it."""

import random
from pathlib import Path
from typing import Any

import pytest
import yaml

from data.files.readers import reader_of
from data.formats.table import FORMATS, build, build_all, candidates, parse
from data.records import Demonstration, Message, Origin, Prompt, Ranking
from data.select.dropped import DroppedRows
from onebase.errors import DataError

FIXTURES = Path(__file__).parent / "fixtures"
KINDS: dict[str, Any] = {"prompt": Prompt, "demonstration": Demonstration, "ranking": Ranking}
EXPECTED = {path.name.removesuffix(".expected.yaml"): path for path in sorted(FIXTURES.glob("*.expected.yaml"))}
CASES = [(name, kind) for name in EXPECTED for kind in KINDS if KINDS[kind] in FORMATS[name].makers]
ORIGIN = Origin("a.jsonl", 1)


def expected_of(name: str) -> dict[str, Any]:
    """By kind of record; and `options`, which go behind the format's name."""
    return yaml.safe_load(EXPECTED[name].read_text(encoding="utf-8"))


def fixture_of(name: str) -> Path:
    (file,) = [path for path in FIXTURES.glob(f"{name}.json*")]
    return file


def fixture_rows(name: str) -> list[tuple[int, Any]]:
    path = fixture_of(name)
    read = reader_of(path)
    assert read is not None
    return list(read(path))


def expected_record(kind: str, written: dict[str, Any]) -> Any:
    turns = written["says"] if "says" in written else [["user", written["asks"]]]
    prompt = Prompt(tuple(Message(role, content) for role, content in turns), ORIGIN, written.get("meta", {}))
    match kind:
        case "prompt":
            return prompt
        case "demonstration":
            return Demonstration(prompt, written["response"])
        case _:
            labels = tuple(written.get("labels", ()))
            return Ranking(prompt, tuple(written["responses"]), tuple(written["tiers"]), labels)


def at(record: Any) -> str:
    """The line of a record, and the part where it is one of several."""
    return str(record.prompt.origin).split(":", 1)[1]


def anonymous(record: Any) -> Any:
    prompt = record.prompt
    bare = Prompt(prompt.messages, ORIGIN, prompt.meta)
    match record:
        case Demonstration():
            return Demonstration(bare, record.response)
        case Ranking():
            return Ranking(bare, record.responses, record.tiers, record.labels)
        case _:
            return bare


def test_every_format_has_a_fixture():
    assert set(EXPECTED) == set(FORMATS)


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_a_fixture_becomes_what_is_written_beside_it(name: str, kind: str):
    whole = expected_of(name)
    expected = whole[kind]
    refused: dict[str, str] = {}
    left_out: dict[str, str] = {}

    def report(error: DataError) -> None:
        place, _, message = str(error).removeprefix("f:").partition(": ")
        assert place not in refused
        refused[place] = message

    def note(reason: str, place: str) -> None:
        assert place.removeprefix("f:") not in left_out
        left_out[place.removeprefix("f:")] = reason

    named = " ".join([name, whole.get("options", "")]).strip()
    records = list(build_all(iter(fixture_rows(name)), KINDS[kind], "f", format=named, report=report, note=note))
    wanted = expected.get("records", [])
    assert [anonymous(record) for record in records] == [
        expected_record(kind, wanted_record) for wanted_record in wanted
    ]
    assert [at(record) for record in records] == [wanted_record["at"] for wanted_record in wanted]
    messages = expected.get("refused", {})
    assert set(refused) == set(messages)
    for place, message in messages.items():
        assert message in refused[place]
        assert refused[place].endswith("."), "what to do is a sentence"
    assert left_out == expected.get("left_out", {})


@pytest.mark.parametrize(("name", "kind"), CASES)
def test_the_first_row_of_a_fixture_is_recognised(name: str, kind: str):
    (recognised,) = candidates(fixture_rows(name)[0][1], KINDS[kind])
    # Formats that make the same of a row need no telling apart.
    assert recognised.name == name or recognised.makers[KINDS[kind]] == FORMATS[name].makers[KINDS[kind]]


@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if "refused" in expected_of(case[0])[case[1]]])
def test_a_defect_is_raised_when_nobody_counts_them(name: str, kind: str):
    whole = expected_of(name)
    refused = whole[kind]["refused"]
    named = " ".join([name, whole.get("options", "")]).strip()
    with pytest.raises(DataError) as caught:
        list(build_all(iter(fixture_rows(name)), KINDS[kind], "f", format=named))
    # Rows that are joined are refused when they are read, and so before the rankings of earlier lines come out.
    assert str(caught.value).startswith(tuple(f"f:{place}: " for place in refused))


@pytest.mark.parametrize(("name", "kind"), [case for case in CASES if KINDS[case[1]] not in FORMATS[case[0]].files])
def test_rows_that_stand_alone_are_read_the_same_in_any_order(name: str, kind: str):
    whole = expected_of(name)
    named = " ".join([name, whole.get("options", "")]).strip()
    rows = fixture_rows(name)
    in_order = list(build_all(iter(rows), KINDS[kind], "f", format=named, report=DroppedRows()))
    random.Random(0).shuffle(rows)
    shuffled = list(build_all(iter(rows), KINDS[kind], "f", format=named, report=DroppedRows()))
    assert sorted(map(repr, shuffled)) == sorted(map(repr, in_order))


def test_a_row_that_fits_two_formats_is_refused_with_both():
    row = {"prompt": "a", "response": "b", "completion": "c"}
    with pytest.raises(DataError) as caught:
        list(build(row, Demonstration, ORIGIN))
    assert str(caught.value) == (
        "a.jsonl:1: the row fits several formats: prompt-response {prompt, response}, prompt-completion "
        "{completion, prompt}. Name one with `format`."
    )
    assert [format.name for format in candidates(row, Prompt)] == ["prompt-response"]  # the same prompt either way
    (record,) = build(row, Demonstration, ORIGIN, format="prompt-completion")
    assert record.response == "c"


def test_a_row_that_fits_none_is_refused_with_the_nearest():
    with pytest.raises(DataError) as caught:
        list(build({"prompt": "a", "chosen": "b", "reject": "c"}, Ranking, ORIGIN))
    assert str(caught.value) == (
        "a.jsonl:1: no ranking can be made of the keys ['chosen', 'prompt', 'reject']. Nearest: "
        "hh-rlhf-prompt {chosen, prompt, rejected}; prompt-chosen-rejected {chosen, prompt, rejected}; "
        "prompt-chosen-rejected-chat {chosen, prompt, rejected}; hh-rlhf {chosen, rejected}."
    )
    with pytest.raises(DataError, match=r"keys \['x'\]. Nearest: docs/data.md has all formats"):
        list(build({"x": 1}, Prompt, ORIGIN))


def test_a_key_that_is_null_is_no_key():
    row = {"prompt": "a", "response": "b", "completion": None}
    assert [format.name for format in candidates(row, Demonstration)] == ["prompt-response"]


@pytest.mark.parametrize(
    ("format", "message"),
    [
        ("alpacca", "data: there is no format 'alpacca'; did you mean 'alpaca'?"),
        ("", "data: there is no format ''; Known: messages, "),
        (
            "helpsteer helpfullness=1",
            "data: format 'helpsteer' has no option 'helpfullness'. Its options: helpfulness,",
        ),
        ("alpaca x=1", "data: format 'alpaca' has no option 'x'. Its options: none."),
        ("helpsteer verbosity=low", "data: format 'helpsteer': verbosity must be a number, found 'low'."),
        ("helpsteer verbosity=inf", "data: format 'helpsteer': verbosity must be a number, found 'inf'."),
        ("helpsteer verbosity", "data: format 'helpsteer': verbosity must be a number, found ''."),
        ("alpaca", "data: a.jsonl: the format 'alpaca' gives prompts, demonstrations, not rankings."),
        ("helpsteer helpfulness=0", "data: helpsteer: all weights are 0"),
        ("reddit responses=1", "data: format 'reddit': responses must be at least 2"),
    ],
)
def test_a_format_that_a_recipe_gets_wrong(format: str, message: str):
    with pytest.raises(DataError) as caught:
        list(build_all(iter([(1, {"prompt": "a"})]), Ranking, "a.jsonl", format=format))
    assert str(caught.value).startswith(message)


def test_a_format_of_joined_rows_is_not_read_row_by_row():
    row = dict(fixture_rows("helpsteer")[0][1])
    with pytest.raises(DataError, match="rows of the format 'helpsteer' are joined into rankings"):
        list(build(row, Ranking, ORIGIN))
    with pytest.raises(DataError, match="gives prompts, demonstrations, not rankings"):
        list(build(row, Ranking, ORIGIN, format="alpaca"))


def test_a_bad_first_row_does_not_hide_that_rows_are_joined():
    rows = [(1, ["no object"]), (2, {"x": 1}), *((line + 2, row) for line, row in fixture_rows("helpsteer"))]
    dropped = DroppedRows()
    records = list(build_all(iter(rows), Ranking, "f", report=dropped))
    assert [at(record) for record in records] == ["3", "7", "18"]
    assert dropped.places["expected an object with keys, found list."] == ["f:1"]


def test_a_row_that_lacks_a_key_is_refused_alone_where_rows_are_joined():
    rows = [row for _, row in fixture_rows("thumbs")][:2]
    dropped = DroppedRows()
    assert list(build_all(enumerate([*rows, {"completion": "c", "label": True}]), Ranking, "f", report=dropped))
    assert dropped.places == {"'prompt' must be text, found NoneType. Fix or remove the row.": ["f:2"]}


def test_a_format_holds_for_the_keys_that_told_it():
    alpaca = {"instruction": "Sort.", "input": "b, a", "output": "a, b"}
    rows = [alpaca, {**alpaca, "input": None}, {"question": "2+2?", "answer": "4"}, {"x": 1}, alpaca]
    dropped = DroppedRows()
    records = list(build_all(enumerate(rows, start=1), Demonstration, "f", report=dropped))
    assert [at(record) for record in records] == ["1", "2", "3", "5"]
    assert dropped.defects == 1


def test_rows_with_the_same_keys_are_told_apart_where_a_format_looks_at_values():
    plain = {"instruction": "Sort.", "input": "b, a"}
    chat = {"instruction": "Sort.", "input": "[|Human|] hi\n[|AI|] yo"}
    for rows in ([plain, chat], [chat, plain]):
        dropped = DroppedRows()
        records = list(build_all(enumerate(rows, start=1), Prompt, "f", report=dropped))
        assert [at(record) for record in records] == [str(rows.index(plain) + 1)]
        assert "fits several formats: baize" in next(iter(dropped.counts))


def test_formats_whose_rows_are_joined_say_so():
    joining = {name for name, format in FORMATS.items() if format.files}
    assert joining == {"helpsteer", "thumbs", "thumbs-response", "p3-choices", "reddit", "reddit-comments"}


def test_a_format_recognises_by_keys_and_looks():
    row = {"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "c"}
    assert [candidate.name for candidate in candidates(row, Ranking)] == ["hh-rlhf"]
    assert [candidate.name for candidate in candidates({**row, "chosen": "b"}, Ranking)] == ["chosen-rejected"]
    assert candidates({"chosen": row["chosen"]}, Ranking) == []


def test_options_overlay_the_defaults_and_leave_the_table_alone():
    format = parse("helpsteer helpfulness=0.65 verbosity=-0.4")
    assert format.name == "helpsteer"
    assert dict(format.options) == {
        "helpfulness": 0.65,
        "correctness": 0.0,
        "coherence": 0.0,
        "complexity": 0.0,
        "verbosity": -0.4,
    }
    assert FORMATS["helpsteer"].options["helpfulness"] == 1.0
