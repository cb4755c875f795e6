"""Parquet files that take more memory than they are long: read in parts, or refused by name."""

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data.files import parquet
from data.files.parquet import bytes_of
from data.files.readers import read_parquet
from onebase.errors import DataError

CHATS = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))


def write(path: Path, columns: dict[str, Any], **options: Any) -> Path:
    pq.write_table(pa.table(columns), path, compression="zstd", **options)
    return path


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def repeated(path: Path, kind: str) -> Path:
    """400 rows of a text of 300 kB, which the file holds once."""
    text = "a " * 150_000
    rows = pa.array([text] * 400) if kind == "flat" else pa.array([chat(text)] * 400, type=CHATS)
    return write(path, {"prompt": rows})


@pytest.mark.parametrize("kind", ["flat", "nested"])
def test_a_text_that_is_repeated_takes_the_memory_of_a_few_rows(tmp_path: Path, kind: str) -> None:
    path = repeated(tmp_path / "rows.parquet", kind)
    assert path.stat().st_size < 10_000
    held = pa.total_allocated_bytes()
    tracemalloc.start()
    most = count = 0
    for _, row in read_parquet(path):
        most, count = max(most, pa.total_allocated_bytes() - held), count + 1
        assert len(row["prompt"] if kind == "flat" else row["prompt"][0]["content"]) == 300_000
    python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 400
    assert most < 48 << 20 and python < 48 << 20, "all rows at once are 120 MB"


def test_a_column_that_unpacks_to_far_more_than_the_file_holds_is_refused(tmp_path: Path) -> None:
    plain = write(tmp_path / "plain.parquet", {"prompt": ["a " * 350_000] * 200}, use_dictionary=False)
    lists = pa.ListArray.from_arrays(pa.array([0, 20_000_000]), pa.repeat(pa.scalar(0), 20_000_000))
    numbers = write(tmp_path / "numbers.parquet", {"prompt": ["a"], "tiers": lists})
    for path in (plain, numbers):
        with pytest.raises(
            DataError, match=rf"{path.name}: row group 1 of 1 unpacks from [\d,]+ bytes to 1[\d,]+: over"
        ):
            next(read_parquet(path))


def test_a_column_that_is_left_out_is_not_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "images.parquet", {"prompt": ["a"] * 200, "image": [b"a" * 700_000] * 200})
    assert [row for _, row in read_parquet(path)] == [{"prompt": "a"}] * 200


def test_a_row_over_the_longest_is_named_and_the_others_are_read(tmp_path: Path) -> None:
    texts = ["short", "long " * 30, "short", "long " * 40, "short"]
    path = write(tmp_path / "rows.parquet", {"prompt": texts})
    told: list[DataError] = []
    assert [number for number, _ in read_parquet(path, longest=100, report=told.append)] == [1, 3, 5]
    assert [str(error).partition(":")[2][:2] for error in told] == ["2:", "4:"]
    with pytest.raises(DataError, match=r"rows\.parquet:2: the row is over 100 bytes"):
        list(read_parquet(path, longest=100))


@pytest.mark.parametrize("small", [1, 1 << 30])
def test_rows_come_out_as_arrow_has_them_however_they_are_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    monkeypatch.setattr(parquet, "SMALL", small)
    monkeypatch.setattr(parquet, "HELD", 7)
    monkeypatch.setattr(parquet, "BATCH", 3)
    rows = [
        {
            "prompt": None if n % 5 == 0 else f"p{n % 3}",
            "chat": None if n % 4 == 0 else chat(f"é{n}") * (n % 3),
            "tiers": [n, None, 2],
            "meta": {"k": "v" * n, "x": None},
            "score": n / 2,
        }
        for n in range(23)
    ]
    table = pa.Table.from_pylist(
        rows,
        schema=pa.schema(
            [
                ("prompt", pa.string()),
                ("chat", CHATS),
                ("tiers", pa.list_(pa.int64())),
                ("meta", pa.struct([("k", pa.large_string()), ("x", pa.string())])),
                ("score", pa.float64()),
            ]
        ),
    )
    pq.write_table(table, tmp_path / "rows.parquet", row_group_size=10)
    assert list(read_parquet(tmp_path / "rows.parquet", longest=400)) == list(enumerate(rows, start=1))


def test_the_bytes_of_a_row_are_those_of_its_texts() -> None:
    texts = pa.array(["ab", None, "ab", "é"]).dictionary_encode()
    assert bytes_of(texts).tolist() == [2, 0, 2, 2]
    lists = pa.array([[["ab", "c"], []], None, [["def"]]], type=pa.list_(pa.list_(pa.string())))
    assert bytes_of(lists).tolist() == [3, 0, 3]
    assert bytes_of(lists.slice(2)).tolist() == [3]
    maps = pa.array([[("a", "xyz")], [], [("bc", "d"), ("e", "f")]], type=pa.map_(pa.string(), pa.string()))
    assert bytes_of(maps).tolist() == [4, 0, 5]
    assert bytes_of(pa.array([1, 2, 3])).tolist() == np.full(3, 8).tolist()
