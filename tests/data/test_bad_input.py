"""Every kind of bad input has a message of its own that names the place; none is accepted, none ends in a traceback."""

import gzip
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from typer.testing import CliRunner

from data.records import Demonstration, Prompt, Ranking
from data.select.sources import Source, load
from onebase.errors import DataError, RecipeError
from onebase.recipe import reader, sections

LIMIT = 2**18

GOOD = b'{"prompt": "a", "response": "b"}\n'


def line(**row: Any) -> bytes:
    return json.dumps(row).encode() + b"\n"


def zstd(content: bytes) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.CompressedOutputStream(sink, "zstd") as stream:
        stream.write(content)
    return sink.getvalue().to_pybytes()


def parquet(**columns: list[Any]) -> bytes:
    return parquet_of(pyarrow.table(columns))


def parquet_of(table: Any) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink)
    return sink.getvalue().to_pybytes()


NOT_UTF8 = pyarrow.StringArray.from_buffers(
    2, pyarrow.array([0, 1, 2], pyarrow.int32()).buffers()[1], pyarrow.py_buffer(b"a\xff")
)
TWICE = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["prompt", "prompt"])
ROWS = b"".join(
    line(prompt=sha256(bytes([number % 256] * number)).hexdigest(), response="yes") for number in range(3000)
)

# id, file name, content, what it says behind the file's name
FILES: list[tuple[str, str, bytes, str]] = [
    # the file is something else
    ("gzip without its ending", "a.jsonl", gzip.compress(GOOD), ":1: not text: it is compressed with gzip"),
    ("zstd without its ending", "a.jsonl", zstd(GOOD), ":1: not text: it is compressed with zstd"),
    ("bzip2", "a.jsonl", b"BZh91AY", ":1: not text: it is compressed with bzip2"),
    ("xz", "a.jsonl", b"\xfd7zXZ\0\0", ":1: not text: it is compressed with xz"),
    ("zip", "a.csv", b"PK\x03\x04rest", ":1: not text: it is a zip archive"),
    ("parquet named jsonl", "a.jsonl", parquet(prompt=["a"]), ":1: not text: it is a Parquet file"),
    ("arrow", "a.json", b"ARROW1\0\0", ":1: not text: it is an Arrow file"),
    ("UTF-16", "a.jsonl", GOOD.decode().encode("utf-16"), ":1: not text: it is UTF-16"),
    ("UTF-16 the other way round", "a.json", b"\xfe\xff\0[", ":1: not text: it is UTF-16"),
    ("UTF-32", "a.csv", "prompt\na".encode("utf-32"), ":1: not text: it is UTF-32"),
    (
        "LFS pointer",
        "a.jsonl",
        b"version https://git-lfs.github.com/spec/v1\n",
        ":1: not text: it is a Git LFS pointer",
    ),
    ("web page", "a.jsonl", b"<!DOCTYPE html>\n<html>", ":1: not text: it is a web page"),
    # streams
    ("truncated gzip", "a.jsonl.gz", gzip.compress(ROWS)[:-500], "the gzip stream ends early"),
    ("plain text named gz", "a.jsonl.gz", GOOD, ":1: not a sound gzip file (Not a gzipped file"),
    ("damage inside gzip", "a.jsonl.gz", gzip.compress(GOOD)[:-8] + b"12345678", ": not a sound gzip file (CRC check"),
    ("garbage behind gzip", "a.jsonl.gz", gzip.compress(GOOD) + b"more", ": not a sound gzip file (Not a gzipped"),
    ("truncated zstd", "a.jsonl.zst", zstd(ROWS)[:-900], "the zstd stream ends early"),
    ("plain text named zst", "a.jsonl.zst", GOOD, ":1: cannot be read (ZSTD"),
    ("gzip within gzip", "a.jsonl.gz", gzip.compress(gzip.compress(GOOD)), ":1: not text: it is compressed with gzip"),
    # encodings
    (
        "Latin-1",
        "a.jsonl",
        GOOD + '{"prompt": "caf\xe9"}\n'.encode("latin-1"),
        ":2:16: not UTF-8 (invalid continuation",
    ),
    ("Latin-1 in a list", "a.json", '[{"prompt":\n"\xe9"}]'.encode("latin-1"), ":2:2: not UTF-8 (invalid continuation"),
    ("Latin-1 in CSV", "a.csv", "prompt,response\ncaf\xe9,b\n".encode("latin-1"), ":2:4: not UTF-8"),
    ("NUL byte", "a.jsonl", GOOD + b'{"prompt": "\0"}\n', ":2:13: contains a NUL byte"),
    ("NUL byte in a list", "a.json", b'[{"prompt": "a\0"}]', ":1:15: contains a NUL byte"),
    ("surrogate in UTF-8", "a.jsonl", b'{"prompt": "\xed\xa0\x80"}\n', ":1:13: not UTF-8 (half of a surrogate pair"),
    ("escaped NUL", "a.jsonl", rb'{"prompt": "\u0000", "response": "b"}', ":1: prompt contains a NUL"),
    (
        "lone surrogate",
        "a.jsonl",
        rb'{"prompt": "a", "response": "\ud83d"}',
        ":1: response contains half of a surrogate",
    ),
    (
        "lone surrogate deep inside",
        "a.jsonl",
        rb'{"messages": [{"role": "user", "content": "\udc00"}]}',
        ":1: messages[0].content contains half of a surrogate pair",
    ),
    ("lone surrogate in a key", "a.jsonl", rb'{"\ud800": 1}', ":1: a key of the row contains half of a surrogate pair"),
    ("text cut within a letter", "a.json", b'["\xc3', ":1:3: not UTF-8 (unexpected end of data)"),
    # lines of JSON
    ("malformed", "a.jsonl", GOOD + b'{"prompt": a}\n', ":2:12: not valid JSON: Expecting value"),
    ("two values on a line", "a.jsonl", GOOD.strip() + b" " + GOOD, ":1:34: not valid JSON: Extra data"),
    ("line cut off", "a.jsonl", GOOD + b'{"prompt": "a', ":2:12: not valid JSON: Unterminated string"),
    (
        "raw line feed in text",
        "a.jsonl",
        b'{"prompt": "a\n", "response": "b"}',
        ":1:14: not valid JSON: Invalid control",
    ),
    ("control character", "a.jsonl", b'{"prompt": "a\tb"}', ":1:14: not valid JSON: Invalid control character"),
    ("single quotes", "a.jsonl", b"{'prompt': 'a'}", ":1:2: not valid JSON: Expecting property name"),
    ("no-break space", "a.jsonl", "\xa0{}".encode(), ":1:1: not valid JSON: Expecting value"),
    ("list named jsonl", "a.jsonl", b"[\n  {}\n]", ":1:2: the file is one JSON list"),
    ("pretty-printed jsonl", "a.jsonl", b'{\n  "prompt": "a"\n}', ":1:2: a row spans several lines"),
    ("lone carriage returns", "a.jsonl", b"{}\r{}\r", ":1:4: lines end with lone carriage returns"),
    ("key given twice", "a.jsonl", b'{"prompt": "a", "prompt": "b"}', ":1: the key 'prompt' is given twice"),
    ("NaN", "a.jsonl", b'{"prompt": "a", "score": NaN}', ":1: NaN is not JSON"),
    ("Infinity", "a.jsonl", b'{"prompt": "a", "score": -Infinity}', ":1: -Infinity is not JSON"),
    ("float without end", "a.jsonl", b'{"prompt": "a", "score": 1e999}', ":1: a number is too large for a 64-bit"),
    ("integer without end", "a.jsonl", b"9" * 5000, ":1: a whole number has thousands of digits"),
    ("nested without end", "a.jsonl", b"[" * 100_000 + b"]", ":1: lists or objects are nested too deeply"),
    ("line without end", "a.jsonl", line(prompt="a" * LIMIT, response="b"), ":1: the line is over 262144 bytes"),
    # JSON lists
    ("lines of JSON named json", "a.json", b"\n" + GOOD + GOOD, ":3:1: there is more after the first row"),
    ("text named json", "a.json", b'\n"a"', ":2:1: expected a list of rows, found text"),
    ("empty json", "a.json", b"", ":1: the file is empty"),
    ("list without its end", "a.json", b"[" + GOOD, "expected ',' or ']' after a row, the file ends"),
    ("rows without a comma", "a.json", b"[" + GOOD + b"{}]", ":2:1: expected ',' or ']' after a row, found '{'"),
    ("comma before the end", "a.json", b"[" + GOOD.strip() + b",\n]", ":2:1: a comma before the list's end"),
    ("two lists", "a.json", b"[]\n[]", ":2:1: there is more after the list's end"),
    ("malformed row of a list", "a.json", b'[\n{"prompt": nope}]', ":2:12: not valid JSON: Expecting value"),
    ("row without end in a list", "a.json", b'["' + b"a" * LIMIT, ":1:2: row 1 is over 262144 characters"),
    ("key given twice in a list", "a.json", b'[{"a": 1, "a": 2}]', ":1: the key 'a' is given twice"),
    # CSV
    ("fewer cells", "a.csv", b"prompt,response\na\n", ":2: the row has another number of cells"),
    ("more cells", "a.csv", b"prompt,response\na,b,c\n", ":2: the row has another number of cells"),
    ("quote left open", "a.csv", b'prompt,response\n"a,b\n', ":2: not valid CSV: unexpected end of data"),
    ("quote inside a cell", "a.csv", b'prompt,response\n"a"b,c\n', ":2: not valid CSV: ',' expected after"),
    (
        "cell without end",
        "a.csv",
        b'prompt,response\n"' + b"a\n" * LIMIT,
        "not valid CSV: field larger than field limit",
    ),
    ("column twice", "a.csv", b"prompt,prompt\na,b\n", ":1: the column 'prompt' is there twice"),
    ("blank line for a header", "a.csv", b"\nprompt,response\na,b\n", ":1: the header is a blank line"),
    ("column without a name", "a.csv", b"prompt,\na,b\n", ":1: a column of the header has no name"),
    ("semicolons", "a.csv", b"prompt;response\na;b\n", ":1: the columns are separated by ';'"),
    ("tabs", "a.csv", b"prompt\tresponse\na\tb\n", r":1: the columns are separated by '\t'"),
    # Parquet
    ("no Parquet", "a.parquet", GOOD * 9, ": not a readable Parquet file: Parquet magic bytes not found"),
    ("truncated Parquet", "a.parquet", parquet(prompt=["a"])[:-20], ": not a readable Parquet file"),
    ("column twice in Parquet", "a.parquet", parquet_of(TWICE), ": the column 'prompt' is there twice"),
    ("Parquet text not UTF-8", "a.parquet", parquet_of(pyarrow.table({"prompt": NOT_UTF8})), "is not UTF-8"),
    (
        "NUL character in Parquet",
        "a.parquet",
        parquet(prompt=["a\0b"], response=["c"]),
        ":1: prompt contains a NUL character",
    ),
    # nothing in it
    ("empty file", "a.jsonl", b"", ": no records. The file is empty"),
    ("blank lines only", "a.jsonl", b"\n \r\n\n", ": no records. The file is empty"),
    ("header only", "a.csv", b"prompt,response\n", ": no records. The file is empty"),
    ("empty list", "a.json", b" [ ] ", ": no records. The file is empty"),
    # rows
    ("row is a list", "a.jsonl", b'["prompt"]', ":1: expected an object with keys, found list"),
    ("row is a text", "a.jsonl", b'"prompt"', ":1: expected an object with keys, found str"),
    ("row is null", "a.jsonl", b"null", ":1: expected an object with keys, found NoneType"),
    ("prompt is a number", "a.jsonl", line(prompt=3, response="b"), ":1: 'prompt' must be text, found int"),
    ("response is a boolean", "a.jsonl", line(prompt="a", response=True), ":1: 'response' must be text, found bool"),
    ("response is blank", "a.jsonl", line(prompt="a", response=" \n"), ":1: the response is empty"),
    ("prompt is blank", "a.jsonl", line(prompt="\t", response="b"), ":1: message 1 (user) is empty"),
    ("messages are text", "a.jsonl", line(messages="hello"), "'messages' must be a list"),
    ("no messages", "a.jsonl", line(messages=[]), "'messages' must be a list"),
    (
        "unknown role",
        "a.jsonl",
        line(messages=[{"role": "tool", "content": "a"}]),
        "the role must be one of system, user, assistant, found 'tool'",
    ),
    (
        "user twice in a row",
        "a.jsonl",
        line(messages=[{"role": "user", "content": "a"}] * 2 + [{"role": "assistant", "content": "b"}]),
        ":1: message 2 is from 'user', expected 'assistant'",
    ),
]

RANKINGS: list[tuple[str, dict[str, Any], str]] = [
    ("one response", {"responses": ["a"], "tiers": [0]}, "a ranking needs at least 2 responses, found 1"),
    ("fewer tiers", {"responses": ["a", "b"], "tiers": [0]}, "2 responses but 1 tiers"),
    ("all tied", {"responses": ["a", "b"], "tiers": [1, 1]}, "all responses are tied"),
    ("tiers as booleans", {"responses": ["a", "b"], "tiers": [True, False]}, "'tiers' must be a list of whole numbers"),
    ("ranks as text", {"responses": ["a", "b"], "ranks": ["1", "2"]}, "'ranks' must be a list of whole numbers"),
    ("response no text", {"responses": ["a", None], "tiers": [0, 1]}, "'responses' must be a list of texts"),
    ("response blank", {"responses": ["a", " "], "tiers": [0, 1]}, "response 2 is empty"),
    ("response twice", {"responses": ["a", "a"], "tiers": [0, 1]}, "response 2 is the same as an earlier one"),
    ("labels too few", {"responses": ["a", "b"], "tiers": [0, 1], "labels": ["x"]}, "2 responses but 1 labels"),
    ("labels no texts", {"responses": ["a", "b"], "tiers": [0, 1], "labels": ["x", 1]}, "'labels' must be a list of"),
    ("rejected no text", {"chosen": "a", "rejected": 0}, "'rejected' must be text, found int"),
    ("chosen is rejected", {"chosen": "a", "rejected": "a"}, "response 2 is the same as an earlier one"),
]

# id, keys of a source, what it says
SETTINGS: list[tuple[str, dict[str, Any], str]] = [
    ("no such file", {"source": "nowhere.jsonl"}, "data: there is no file nowhere.jsonl"),
    ("unread ending", {"source": "a.xlsx"}, "data: a.xlsx: files of this kind are not read"),
    ("packed Parquet", {"source": "a.parquet.gz"}, "data: a.parquet.gz: files of this kind are not read"),
    ("unknown built-in", {"source": "builtin:task"}, "data: 'builtin:task' is not known"),
    ("split of a file", {"source": "good.jsonl", "split": "test"}, "a file has no split 'test'"),
    ("split of built-in", {"source": "builtin:tasks", "split": "test", "rows": 1}, "has no split 'test'"),
    ("built-in without rows", {"source": "builtin:tasks", "split": "sft"}, "give the number of records with `rows`"),
    ("more rows than there are", {"source": "good.jsonl", "rows": 9}, "`rows` is 9, but there are only 1"),
    (
        "unknown format",
        {"source": "good.jsonl", "format": "alpaka"},
        "there is no format 'alpaka'; did you mean 'alpaca'?",
    ),
    ("revision of a file", {"source": "good.jsonl", "revision": "main"}, "`revision` has no effect for a file"),
    ("responses of a file", {"source": "good.jsonl", "responses": (4, 9)}, "`responses` has no effect for a file"),
    ("noise of a file", {"source": "good.jsonl", "noise": 0.1}, "`noise` has no effect for a file"),
    (
        "cap of built-in tasks",
        {"source": "builtin:tasks", "split": "sft", "rows": 4, "per_task": 1},
        "`per_task` has no effect for a built-in source",
    ),
    ("nothing to check against", {"source": "good.jsonl", "contamination": {}}, "contamination has nothing to check"),
    (
        "contaminated",
        {"source": "good.jsonl", "contamination": {"against": ["good.jsonl"]}},
        "good.jsonl:1: the prompt is an evaluation prompt: good.jsonl:1",
    ),
    ("folder", {"source": "folder.jsonl"}, "data: folder.jsonl is a folder, not a file"),
]

# What a recipe's source may not say, and the words in the message beside the key.
KEYS: list[tuple[str, str, str]] = [
    ("weight of zero", "weight: 0", "weight"),
    ("negative weight", "weight: -1.5", "weight"),
    ("endless weight", "weight: .inf", "weight"),
    ("no rows", "rows: 0", "rows"),
    ("cap of zero", "per_task: 0", "per_task"),
    ("unknown dedupe", "dedupe: all", "'none', 'rows' or 'prompts'"),
    ("unknown reaction", "on_bad_row: skip", "'error' or 'drop'"),
    ("line limit of zero", "longest_line: 0", "longest_line"),
    ("similarity over one", "contamination: {similarity: 1.5}", "contamination.similarity"),
    ("unknown contamination key", "contamination: {word: 8}", "did you mean 'words'?"),
    ("format is a number", "format: 7", "format"),
]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.jsonl").write_bytes(GOOD)
    Path("folder.jsonl").mkdir()


@pytest.mark.parametrize(("name", "content", "message"), [case[1:] for case in FILES], ids=[case[0] for case in FILES])
def test_a_bad_file_is_refused_by_name_and_place(name: str, content: bytes, message: str):
    Path(name).write_bytes(content)
    with pytest.raises(DataError) as caught:
        load([Source(source=name, longest_line=LIMIT)], Demonstration, seed=0)
    assert message in str(caught.value)
    assert str(caught.value).startswith(name)


@pytest.mark.parametrize(("name", "content", "message"), [case[1:] for case in FILES], ids=[case[0] for case in FILES])
def test_data_check_ends_with_two_and_no_traceback(name: str, content: bytes, message: str):
    from pipeline.data_commands import app

    Path(name).write_bytes(content)
    done = CliRunner().invoke(app, ["check", name, "--kind", "demonstration", "--longest-line", str(LIMIT)])
    assert done.exit_code == 2
    assert name in done.output
    assert "Traceback" not in done.output


@pytest.mark.parametrize(("row", "message"), [case[1:] for case in RANKINGS], ids=[case[0] for case in RANKINGS])
def test_a_bad_ranking_is_refused_with_its_line(row: dict[str, Any], message: str):
    Path("a.jsonl").write_bytes(b"\n" + line(prompt="a", **row))
    with pytest.raises(DataError) as caught:
        load([Source(source="a.jsonl")], Ranking, seed=0)
    assert message in str(caught.value)
    assert str(caught.value).startswith("a.jsonl:2: ")


@pytest.mark.parametrize(("keys", "message"), [case[1:] for case in SETTINGS], ids=[case[0] for case in SETTINGS])
def test_a_source_that_cannot_be_is_refused(keys: dict[str, Any], message: str):
    with pytest.raises(DataError) as caught:
        load([Source.model_validate(keys)], Prompt, seed=0)
    assert message in str(caught.value)


@pytest.mark.parametrize("name", ["org/llama-3.1-tulu-3-8b-preference-mixture", "org/set-v1.2", "org/plain"])
def test_an_id_with_a_version_in_it_is_asked_of_the_hub(name: str, monkeypatch: pytest.MonkeyPatch):
    arguments_asked = list[object]()

    def load_dataset(*arguments: object, **named: object) -> list[dict[str, str]]:
        arguments_asked.extend([arguments, named])
        return [{"prompt": "a", "response": "b"}]

    monkeypatch.setattr("datasets.load_dataset", load_dataset)
    loaded = load([Source(source=name, config="main", split="test", revision="abc")], Demonstration, seed=0)
    assert [record.response for record in loaded.records] == ["b"]
    assert arguments_asked == [(name, "main"), {"split": "test", "revision": "abc"}]


def test_weights_for_some_sources_only_are_refused():
    sources = [Source(source="good.jsonl", weight=1.0), Source(source="other.jsonl")]
    with pytest.raises(DataError, match=r"some sources have a weight and other\.jsonl has none"):
        load(sources, Demonstration, seed=0)


@pytest.mark.parametrize(("key", "message"), [case[1:] for case in KEYS], ids=[case[0] for case in KEYS])
def test_a_bad_key_of_a_source_is_refused_with_the_recipes_line(key: str, message: str):
    class Recipe(sections.Section):
        data: tuple[Source, ...]

    Path("recipe.yaml").write_text(f"data:\n- source: good.jsonl\n  {key}\n")
    with pytest.raises(RecipeError, match=r"recipe\.yaml:3") as caught:
        reader.read("recipe.yaml", Recipe)
    assert message in str(caught.value)


def test_there_are_sixty_kinds_of_bad_input_and_more():
    cases = [*FILES, *RANKINGS, *SETTINGS, *KEYS]
    assert len({case[0] for case in cases}) == len(cases)
    assert len(cases) > 100


DROPPABLE = [
    (case[0], case[2])
    for case in FILES
    if case[1] == "a.jsonl"
    and case[2]
    and case[3].startswith(":")
    and ": not text" not in case[3]
    and case[2].count(b"\n") <= 2
]


@pytest.mark.parametrize("content", [case[1] for case in DROPPABLE], ids=[case[0] for case in DROPPABLE])
def test_a_bad_row_is_counted_and_the_rows_around_it_are_kept(content: bytes):
    bad = content.removeprefix(GOOD).strip(b"\n").replace(b"\n", b"")
    around = [line(prompt="before", response="b"), line(prompt="after", response="b")]
    Path("a.jsonl").write_bytes(around[0] + bad + b"\n" + around[1])
    loaded = load([Source(source="a.jsonl", on_bad_row="drop", longest_line=LIMIT)], Demonstration, seed=0)
    assert {record.prompt.user_text for record in loaded.records} >= {"before", "after"}
    assert sum(loaded.identities[0].dropped.values()) + len(loaded.records) == 3
