"""Laws of every reader: whatever the bytes, records or a DataError; whatever the records, they come back equal."""

import csv
import gzip
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.records import Demonstration, Message, Origin, Prompt, Ranking, Record
from data.select.dropped import DroppedRows
from data.select.sources import Source, records_of
from data.writing import row_of, write
from onebase.errors import DataError

NAMES = ("a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz", "a.json.zst")

TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=30).filter(str.strip)
ORIGIN = Origin("generated", 1)


# Strategies draw plain values and the tests make records of them: the checks of types that are on in tests pick list
# elements at random, which hypothesis does not allow while it draws.
TURNS = st.lists(TEXT, min_size=1, max_size=5).filter(lambda turns: len(turns) % 2 == 1)
META = st.dictionaries(TEXT, st.none() | st.booleans() | st.integers(-9, 9) | TEXT, max_size=2)
PROMPT = st.tuples(st.none() | TEXT, TURNS, META)


@st.composite
def ranked(draw: st.DrawFn) -> dict[str, Any]:
    responses = draw(st.lists(TEXT, min_size=2, max_size=5, unique=True))
    order = draw(st.lists(st.integers(0, 3), min_size=len(responses), max_size=len(responses)))
    order[0] = 4  # two tiers at least: the others are lower
    tiers = tuple(sorted(set(order)).index(tier) for tier in order)
    labels = tuple(draw(TEXT) for _ in responses) if draw(st.booleans()) else ()
    return {"responses": tuple(responses), "tiers": tiers, "labels": labels}


ROWS: dict[type, st.SearchStrategy[Any]] = {
    Prompt: st.tuples(PROMPT, st.just({})),
    Demonstration: st.tuples(PROMPT, st.fixed_dictionaries({"response": TEXT})),
    Ranking: st.tuples(PROMPT, ranked()),
}
# A cell of CSV is text, and a text with Anthropic's mark is a dialogue.
CELL = TEXT.filter(lambda text: not text.startswith("\n\nHuman:"))
PLAIN = st.tuples(
    st.tuples(st.none(), st.lists(CELL, min_size=1, max_size=1), st.just({})), st.fixed_dictionaries({"response": TEXT})
)


def record(kind: Any, drawn: Any) -> Any:
    (system, turns, meta), rest = drawn
    messages = [Message("assistant" if index % 2 else "user", turn) for index, turn in enumerate(turns)]
    if system is not None:
        messages.insert(0, Message("system", system))
    prompt = Prompt(tuple(messages), ORIGIN, meta)
    return prompt if kind is Prompt else kind(prompt, **rest)


KNOWN = ("prompt", "response", "messages", "role", "content", "responses", "tiers", "chosen", "rejected", "labels")
KEYS = st.sampled_from(KNOWN) | st.text(max_size=4)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


DAMAGE = (
    st.binary(max_size=200)
    | st.lists(JSON, max_size=4)
    | st.tuples(st.lists(PLAIN, min_size=1, max_size=4), st.floats(0, 1), st.integers(0, 20), st.binary(max_size=8))
)
"""Bytes of any kind; rows of JSON of any shape; or a valid file of which a part is cut out or overwritten."""


def damaged(drawn: Any, name: str, folder: Path) -> bytes:
    if isinstance(drawn, bytes):
        return drawn
    if isinstance(drawn, list):
        return _pack(
            "\n".join(map(json.dumps, drawn)).encode() if "jsonl" in name else json.dumps(drawn).encode(), name
        )
    rows, where, size, instead = drawn
    put([record(Demonstration, row) for row in rows], folder / name)
    content = (folder / name).read_bytes()
    start = int(where * len(content))
    return content[:start] + instead + content[start + size :]


def _pack(content: bytes, name: str) -> bytes:
    if name.endswith(".gz"):
        return gzip.compress(content)
    if name.endswith(".zst"):
        return pyarrow.compress(content, codec="zstd", asbytes=True)
    return content


def put(records: Sequence[Record], path: Path) -> None:
    """Write records in each of the forms that are read."""
    if path.suffix in (".jsonl", ".parquet"):
        write(records, path)
        return
    rows = [row_of(record) for record in records]
    if path.suffix == ".csv":
        stream = io.StringIO(newline="")
        writer = csv.DictWriter(stream, ["prompt", "response"])
        writer.writeheader()
        writer.writerows(rows)
        content = stream.getvalue()
    elif ".jsonl" in path.name:
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        content = json.dumps(rows, indent=1, ensure_ascii=False)
    path.write_bytes(_pack(content.encode(), path.name))


def read(path: Path, kind: Any, **settings: Any) -> tuple[list[Any], DroppedRows]:
    dropped = DroppedRows()
    return list(records_of(Source(source=str(path), **settings), kind, dropped)), dropped


def anonymous(record: Any) -> Any:
    """The record without its place."""
    prompt = replace(record.prompt, origin=ORIGIN)
    return prompt if isinstance(record, Prompt) else replace(record, prompt=prompt)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("laws")


def _settings(examples: int) -> settings:
    slow = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    return settings(max_examples=examples, deadline=None, suppress_health_check=slow)


def any_bytes_law(examples: int) -> Callable[..., None]:
    @pytest.mark.parametrize("name", NAMES)
    @_settings(examples)
    @given(drawn=DAMAGE, kind=st.sampled_from(list(ROWS)), on_bad_row=st.sampled_from(["error", "drop"]))
    def test(folder: Path, name: str, drawn: Any, kind: Any, on_bad_row: str) -> None:
        (folder / name).write_bytes(damaged(drawn, name, folder))
        try:
            records, _ = read(folder / name, kind, on_bad_row=on_bad_row)
        except DataError as error:
            assert str(error).startswith(str(folder / name))
        else:
            assert all(isinstance(record, kind) for record in records)

    return test


def round_trip_law(examples: int) -> Callable[..., None]:
    @pytest.mark.parametrize("name", NAMES)
    @_settings(examples)
    @given(data=st.data(), kind=st.sampled_from(list(ROWS)))
    def test(folder: Path, name: str, data: st.DataObject, kind: type) -> None:
        kind, rows = (Demonstration, PLAIN) if name == "a.csv" else (kind, ROWS[kind])
        drawn = data.draw(st.lists(rows, min_size=1, max_size=5))
        written = [record(kind, fields) for fields in drawn]
        put(written, folder / name)
        records, dropped = read(folder / name, kind)
        assert list(map(anonymous, records)) == written
        assert dropped.total == 0

    return test


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.parquet"])
def test_a_question_that_quotes_a_dialogue_stays_one_question(tmp_path: Path, name: str):
    quoting = Prompt((Message("user", "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Who spoke first?"),), ORIGIN)
    put([quoting], tmp_path / name)
    records, _ = read(tmp_path / name, Prompt)
    assert list(map(anonymous, records)) == [quoting]


test_whatever_the_bytes_it_gives_records_or_says_data_error = any_bytes_law(200)
test_whatever_the_records_they_come_back = round_trip_law(200)
test_whatever_the_bytes_at_length = pytest.mark.slow(any_bytes_law(5000))
test_whatever_the_records_at_length = pytest.mark.slow(round_trip_law(5000))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.csv", "a.json"])
def test_a_byte_order_mark_and_windows_line_ends_change_nothing(tmp_path: Path, name: str):
    text = {
        ".csv": "prompt,response\r\nhello,there\r\n",
        ".json": '[\r\n{"prompt": "hello",\r\n"response": "there"}]\r\n',
    }.get(Path(name).suffix, '{"prompt": "hello", "response": "there"}\r\n\r\n')
    (tmp_path / name).write_bytes(_pack(text.encode("utf-8-sig"), name))
    records, _ = read(tmp_path / name, Demonstration)
    assert [(record.prompt.user_text, record.response) for record in records] == [("hello", "there")]


def test_marks_of_joined_files_are_taken_off(tmp_path: Path):
    marked = '{"prompt": "hello", "response": "there"}\n'.encode("utf-8-sig")
    (tmp_path / "a.jsonl").write_bytes(marked + marked)
    assert len(read(tmp_path / "a.jsonl", Demonstration)[0]) == 2


def test_a_list_on_one_line_is_read(tmp_path: Path):
    rows = [{"prompt": f"é{number}" * 50, "response": "x" * (number % 301)} for number in range(1, 3000)]
    (tmp_path / "a.json").write_text(json.dumps(rows, ensure_ascii=False), encoding="utf-8")
    records, _ = read(tmp_path / "a.json", Prompt)
    assert [record.user_text for record in records] == [row["prompt"] for row in rows]
    assert [record.origin.line for record in records] == list(range(1, 3000))


def test_a_row_of_a_list_that_is_broken_far_in_is_named_with_its_line(tmp_path: Path):
    rows = ['{"prompt": "a", "response": "b"}'] * 9000
    rows[7000] = '{"prompt": "a" "response": "b"}'
    (tmp_path / "a.json").write_text("[" + ",\n".join(rows) + "]")
    with pytest.raises(DataError, match=r"a\.json:7001:16: not valid JSON: Expecting ',' delimiter"):
        read(tmp_path / "a.json", Demonstration)


@pytest.mark.parametrize("end", [",\n", ","])
@pytest.mark.parametrize("letters", ["aaaa", "éé"])
def test_a_list_that_is_too_large_to_hold_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, letters: str
):
    text = "[" + end.join([f'{{"prompt": "{letters}"}}'] * 10) + "]"
    for name, content in (("a.json", text.encode()), ("a.json.gz", gzip.compress(text.encode()))):
        if name == "a.json.gz" and end == ",":
            continue  # a line that is too long says so
        (tmp_path / name).write_bytes(content)
        monkeypatch.setattr("data.files.readers.LARGEST_LIST", len(text.encode()) - 1)
        with pytest.raises(DataError, match=r"a JSON list is held as a whole.* > a(\.json)?\.jsonl"):
            read(tmp_path / name, Prompt)
        monkeypatch.setattr("data.files.readers.LARGEST_LIST", len(text.encode()))
        assert len(read(tmp_path / name, Prompt)[0]) == 10


def test_a_long_list_of_numbers_is_read(tmp_path: Path):
    from data.files.readers import read_json

    numbers = list(range(1000, 60_000))
    (tmp_path / "a.json").write_text(json.dumps(numbers))
    assert [value for _, value in read_json(tmp_path / "a.json")] == numbers


def test_times_come_as_text_and_binary_columns_are_left_out(tmp_path: Path):
    import datetime

    import pyarrow.parquet

    from data.files.readers import read_parquet

    row = {"prompt": "a", "at": datetime.date(2026, 1, 2), "raw": b"\xff"}
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "a.parquet")
    assert list(read_parquet(tmp_path / "a.parquet")) == [(1, {"prompt": "a", "at": "2026-01-02"})]


def test_an_over_long_line_is_skipped_and_the_next_one_has_its_own_number(tmp_path: Path):
    row = b'{"prompt": "a", "response": "b"}\n'
    (tmp_path / "a.jsonl").write_bytes(row + b"x" * 3_000_000 + b"\n" + row)
    records, dropped = read(tmp_path / "a.jsonl", Demonstration, longest_line=1000, on_bad_row="drop")
    assert [record.prompt.origin.line for record in records] == [1, 3]
    assert dropped.places == {
        "the line is over 1000 bytes. Is it one line by mistake? Else raise `longest_line`.": [
            f"{tmp_path / 'a.jsonl'}:2"
        ]
    }


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.parquet"])
def test_memory_does_not_grow_with_the_rows(tmp_path: Path, name: str):
    import tracemalloc

    def peak(rows: int) -> int:
        path = tmp_path / name
        prompt = Prompt((Message("user", "word " * 300),), ORIGIN)
        put([Demonstration(prompt, f"answer {number}") for number in range(rows)], path)
        tracemalloc.start()
        try:
            count = sum(1 for _ in records_of(Source(source=str(path)), Demonstration, DroppedRows()))
            assert count == rows
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    peak(10)
    small, large = peak(1000), peak(4000)
    assert large < 1.2 * small + 100_000
