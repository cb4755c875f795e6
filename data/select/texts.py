"""Plain texts and demonstrations as tokens to predict: the data of a language-model loss.

Plain texts come from files, from the hub, or from the manual that comes with every Python. A text is cut into pieces
with a fixed number of tokens. All tokens of a piece but the first are predicted. Of a demonstration the response is
predicted.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pydantic import model_validator

from data.chat.conversations import Chat
from data.files.readers import READERS, reader_of
from data.records import Demonstration, Message, Origin, Prompt, fingerprint
from data.select.dropped import DroppedRows
from data.select.sources import Source, identify, load, rows_of_hub
from data.splits import FILE_SPLITS, split_of
from onebase.errors import DataError
from onebase.run.record import DataIdentity
from onebase.seeding import seeded_order
from onebase.terminal import say

MANUAL = "builtin:python-manual"
"""English prose about the language, by paragraphs: 1,076 of 298,000 characters in Python 3.11, about 75,000 tokens.
Other Pythons have other editions of it; the record's hash of the data shows this."""
SHORTEST_PARAGRAPH = 100
"""Characters: shorter paragraphs are headings, or lines of code."""

Piece = tuple[tuple[int, ...], tuple[int, ...]]
"""Context tokens, at least one, and tokens to predict, at least one."""


class TextSource(Source):
    """A source of demonstrations; with `text`, of plain texts."""

    text: str | None = None
    """The rows' key for a plain text; None: the rows are demonstrations."""

    @model_validator(mode="after")
    def _plain_texts_have_no_format(self) -> "TextSource":
        if self.text is None and self.source == MANUAL:
            raise ValueError(f"{MANUAL} holds plain texts: add `text: text`")
        if self.text is None:
            return self
        for name in ("format", "weight", "per_task", "contamination", "responses"):
            if getattr(self, name) != Source.model_fields[name].default:
                raise ValueError(f"`{name}` has no effect for plain texts (`text` is given). Remove one of the two")
        return self


def load_pieces(
    sources: Sequence[TextSource], chat: Chat, *, tokens: int, seed: int
) -> tuple[list[Piece], list[DataIdentity]]:
    """Everything that the sources hold, in pieces of at most `tokens` tokens, and the identities of the sources.

    Demonstrations are not cut: a response without its end would teach the model not to stop. Longer ones are left out.
    """
    pieces: list[Piece] = []
    identities: list[DataIdentity] = []
    for source in sources:
        load_source = _demonstration_pieces if source.text is None else _text_pieces
        of_source, identity = load_source(source, chat, tokens, seed)
        if not of_source:
            raise DataError(
                f"data: {source.source}: no text has 2 to {tokens} tokens. Raise the tokens of a piece, or pass others."
            )
        pieces += of_source
        identities.append(identity)
    return pieces, identities


def _demonstration_pieces(source: TextSource, chat: Chat, tokens: int, seed: int) -> tuple[list[Piece], DataIdentity]:
    loaded = load([source], Demonstration, seed=seed)
    (identity,) = loaded.identities
    encoded = [(record, chat.encode(record.prompt, record.response)) for record in loaded.records]
    fitting = [(record, ids) for record, ids in encoded if len(ids.prompt) + len(ids.responses[0]) <= tokens]
    too_long = len(encoded) - len(fitting)
    if too_long:
        say(f"{source.source}: demonstrations left out because they are over {tokens} tokens: {too_long}.")
        kept = {"kept": len(fitting), "sha256": fingerprint([record for record, _ in fitting])}
        dropped = identity.dropped | {f"over {tokens} tokens": too_long}
        identity = identity.model_copy(update={**kept, "dropped": dropped})
    return [(ids.prompt, ids.responses[0]) for _, ids in fitting], identity


def _text_pieces(source: TextSource, chat: Chat, tokens: int, seed: int) -> tuple[list[Piece], DataIdentity]:
    dropped = DroppedRows()
    texts = _texts(source, dropped, seed)
    pieces = [piece for text in texts for piece in cut(chat, text.user_text, tokens=tokens)]
    return pieces, identify(source, texts, dropped)


def cut(chat: Chat, text: str, *, tokens: int) -> list[Piece]:
    """A text's tokens, `tokens` at a time. A single last token has nothing to predict and is left out."""
    ids = chat.text_ids(text)
    parts = [ids[start : start + tokens] for start in range(0, len(ids), tokens)]
    return [(part[:1], part[1:]) for part in parts if len(part) > 1]


def _texts(source: TextSource, dropped: DroppedRows, seed: int) -> list[Prompt]:
    """The rows' texts, in a seeded order. A text is held as a user's message, for its place and its split."""
    texts: list[Prompt] = []
    for number, row in _rows(source, dropped):
        origin = Origin(source.source, number)
        content = row.get(source.text) if isinstance(row, dict) else None
        if not isinstance(content, str) or not content.strip():
            if source.on_bad_row == "error":
                raise DataError(
                    f"{origin}: `{source.text}` should hold a text, found {content!r}. Name the right key with `text`, "
                    "or leave such rows out with on_bad_row=drop."
                )
            dropped.add("no text", str(origin))
            continue
        text = Prompt((Message("user", content),), origin)
        if source.split is None or not _is_split_by_hash(source) or split_of(text, FILE_SPLITS) == source.split:
            texts.append(text)
    if source.rows is not None and source.rows > len(texts):
        raise DataError(
            f"data: {source.source}: `rows` is {source.rows}, but there are only {len(texts)}. Lower `rows`."
        )
    if not texts:
        raise DataError(f"data: {source.source}: no texts: the file or its split '{source.split}' is empty.")
    order = seeded_order(len(texts), seed)
    return [texts[index] for index in order[: source.rows]]


def _is_split_by_hash(source: TextSource) -> bool:
    return source.source == MANUAL or reader_of(Path(source.source)) is not None


def _rows(source: TextSource, dropped: DroppedRows) -> Iterator[tuple[int, Any]]:
    path = Path(source.source)
    read = reader_of(path)
    if _is_split_by_hash(source) and source.split is not None and source.split not in FILE_SPLITS:
        known = ", ".join(FILE_SPLITS)
        raise DataError(f"data: {source.source} has no split '{source.split}'. Give one of: {known}, or none.")
    if source.source == MANUAL:
        return enumerate(({source.text: paragraph} for paragraph in _paragraphs()), start=1)
    if read is not None:
        if not path.is_file():
            raise DataError(f"data: there is no file {path}. Check the path; it is relative to where the command runs.")
        return read(path, longest=source.longest_line, report=dropped if source.on_bad_row == "drop" else None)
    if path.exists() or source.source.startswith("builtin:"):
        raise DataError(
            f"data: {source.source}: no plain texts are read from there. Known: {', '.join(READERS)}; {MANUAL}; or a "
            "hub id."
        )
    return rows_of_hub(source)


def _paragraphs() -> list[str]:
    """The manual's paragraphs, each once: its chapters quote each other, and no text may be trained on and held out."""
    from pydoc_data.topics import topics

    parts = (" ".join(part.split()) for name in sorted(topics) for part in topics[name].split("\n\n"))
    return list(dict.fromkeys(part for part in parts if len(part) >= SHORTEST_PARAGRAPH))
