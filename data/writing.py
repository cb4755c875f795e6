"""Records as files in our own form: .jsonl or .parquet, which any source reads back as equal records.

A file appears whole or not at all. It is written as the records come: memory holds a batch.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from data.formats.fields import DIALOGUE
from data.records import Demonstration, Prompt, Ranking, Record
from data.splits import FILE_SPLITS, split_of
from onebase.errors import DataError
from onebase.files.writing import FULL, atomic_file

BATCH = 1000
"""Rows that are held before they are written to Parquet."""

Write = Callable[[Record], None]

# Made once: json.dumps with arguments makes one for every call.
_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False).encode


def row_of(record: Record) -> dict[str, Any]:
    """The row that becomes this record again."""
    prompt = record.prompt
    # A text with Anthropic's mark would be read back as a dialogue.
    plain = len(prompt.messages) == 1 and not prompt.user_text.startswith(DIALOGUE["user"])
    row: dict[str, Any] = {"prompt": prompt.messages[0].content if plain else _messages(prompt)}
    match record:
        case Demonstration():
            row["response"] = record.response
        case Ranking():
            row["responses"] = list(record.responses)
            row["tiers"] = list(record.tiers)
            if record.labels:
                row["labels"] = list(record.labels)
        case _:
            pass
    if prompt.meta:
        row["meta"] = dict(prompt.meta)
    return row


def _messages(prompt: Prompt) -> list[dict[str, str]]:
    return [{"role": message.role, "content": message.content} for message in prompt.messages]


@contextmanager
def atomically(target: Path) -> Iterator[Path]:
    """`atomic_file` in a folder that need not exist; DataError if the target cannot be written."""
    with data_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(target) as temporary:
            yield temporary


@contextmanager
def data_errors(target: Path) -> Iterator[None]:
    """DataError with the target's name if it cannot be written inside; an error of a disk that is full stays."""
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            raise
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise DataError(f"{target}: cannot be written ({reason}).") from error


@contextmanager
def _jsonl(path: Path) -> Iterator[Write]:
    with path.open("w", encoding="utf-8", newline="\n") as stream:
        yield lambda record: _write_line(stream.write, record)


def _write_line(write: Callable[[str], object], record: Record) -> None:
    write(_encode(row_of(record)) + "\n")


@contextmanager
def _parquet(path: Path) -> Iterator[Write]:
    import pyarrow
    import pyarrow.parquet

    message = pyarrow.struct([("role", pyarrow.string()), ("content", pyarrow.string())])
    texts = pyarrow.list_(pyarrow.string())
    columns: Mapping[type, list[tuple[str, Any]]] = {
        Prompt: [],
        Demonstration: [("response", pyarrow.string())],
        Ranking: [("responses", texts), ("tiers", pyarrow.list_(pyarrow.int64())), ("labels", texts)],
    }
    writer: Any = None
    batch: list[dict[str, Any]] = []

    def flush(kind: type) -> None:
        nonlocal writer
        schema = pyarrow.schema([("prompt", pyarrow.list_(message)), *columns[kind], ("meta", pyarrow.string())])
        writer = writer or pyarrow.parquet.ParquetWriter(path, schema)
        writer.write_table(pyarrow.Table.from_pylist(batch, schema=schema))
        batch.clear()

    kind: type = Prompt

    def write(record: Record) -> None:
        nonlocal kind
        kind = type(record)
        meta = record.prompt.meta
        row = {**row_of(record), "prompt": _messages(record.prompt), "meta": _encode(dict(meta)) if meta else None}
        batch.append(row)
        if len(batch) >= BATCH:
            flush(kind)

    try:
        yield write
        if batch or writer is None:
            flush(kind)
    finally:
        if writer is not None:
            writer.close()


WRITERS = {".jsonl": _jsonl, ".parquet": _parquet}


def write(records: Iterable[Record], target: Path) -> int:
    """Write all records to a .jsonl or .parquet file; their number."""
    _require_known(target)
    count = 0
    with atomically(target) as temporary, WRITERS[target.suffix](temporary) as put:
        for record in records:
            put(record)
            count += 1
        if not count:
            raise DataError(f"{target}: there is no record to write, so nothing is written.")
    return count


def write_splits(
    records: Iterable[Record], folder: Path, shares: Mapping[str, float] = FILE_SPLITS, ending: str = ".jsonl"
) -> dict[str, int]:
    """Write each record to the file of its split in `folder`, in one pass; the number of records of each. Empty splits
    get a file too."""
    targets = {split: folder / f"{split}{ending}" for split in shares}
    for target in targets.values():
        _require_known(target)
    counts = dict.fromkeys(shares, 0)
    with ExitStack() as stack:
        put = {
            split: stack.enter_context(WRITERS[ending](stack.enter_context(atomically(target))))
            for split, target in targets.items()
        }
        for record in records:
            split = split_of(record.prompt, shares)
            put[split](record)
            counts[split] += 1
    return counts


def _require_known(target: Path) -> None:
    if target.suffix not in WRITERS:
        raise DataError(f"{target}: files of this kind are not written. Known: {', '.join(WRITERS)}.")
