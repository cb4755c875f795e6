"""Plain texts and demonstrations as tokens to predict: what a language-model loss is measured on, or trained on.

Plain texts come from files, from the hub, or from the manual that every Python brings along. A text becomes pieces of
so many tokens. The first token of a piece is given and the others are predicted; of a demonstration the prompt is given
and the response is predicted.
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
Other Pythons have other editions of it, which the record's hash of the data tells."""
SHORTEST_PARAGRAPH = 100
"""Characters: what is shorter is a heading, or a line of code."""

Piece = tuple[tuple[int, ...], tuple[int, ...]]
"""Tokens that are given, at least one, and tokens to predict, at least one."""


class TextSource(Source):
    """A source of demonstrations, or with `text` of plain texts."""

    text: str | None = None
    """The key of the rows that holds a plain text; None: the rows are demonstrations."""

    @model_validator(mode="after")
    def _plain_texts_have_no_format(self) -> "TextSource":
        if self.text is None and self.source == MANUAL:
            raise ValueError(f"{MANUAL} holds plain texts: say `text: text`")
        if self.text is None:
            return self
        for name in ("format", "weight", "per_task", "contamination", "responses"):
            if getattr(self, name) != Source.model_fields[name].default:
                raise ValueError(f"`{name}` says nothing for plain texts (`text` is given). Remove one of the two")
        return self


def load_pieces(
    sources: Sequence[TextSource], chat: Chat, *, tokens: int, seed: int
) -> tuple[list[Piece], list[DataIdentity]]:
    """Everything that the sources hold, in pieces of at most `tokens` tokens, and which rows that was.

    Demonstrations are not cut: a response without its end would teach not to stop. Longer ones are left out.
    """
    pieces: list[Piece] = []
    identities: list[DataIdentity] = []
    for source in sources:
        dropped = DroppedRows()
        if source.text is None:
            loaded = load([source], Demonstration, seed=seed)
            encoded = [(one, chat.demonstration(one)) for one in loaded.records]
            fitting = [(one, whole) for one, whole in encoded if len(whole.input_ids) <= tokens]
            own = [(whole.prompt_ids, whole.response_ids) for _, whole in fitting]
            (identity,) = loaded.identities
            left_out = len(encoded) - len(fitting)
            if left_out:
                say(f"{source.source}: demonstrations left out, for they are over {tokens} tokens: {left_out}.")
                kept = {"kept": len(own), "sha256": fingerprint([one for one, _ in fitting])}
                counted = identity.dropped | {f"over {tokens} tokens": left_out}
                identity = identity.model_copy(update={**kept, "dropped": counted})
            identities.append(identity)
        else:
            texts = _texts(source, dropped, seed)
            own = [piece for text in texts for piece in cut(chat, text.user_text, tokens=tokens)]
            identities.append(identify(source, texts, dropped))
        if not own:
            raise DataError(
                f"data: {source.source}: no text has 2 to {tokens} tokens. Raise the tokens of a piece, or pass others."
            )
        pieces += own
    return pieces, identities


def cut(chat: Chat, text: str, *, tokens: int) -> list[Piece]:
    """A text's tokens, `tokens` at a time. A last token that would stand alone predicts nothing and is left out."""
    ids = chat.text_ids(text)
    parts = [ids[start : start + tokens] for start in range(0, len(ids), tokens)]
    return [(part[:1], part[1:]) for part in parts if len(part) > 1]


def _texts(source: TextSource, dropped: DroppedRows, seed: int) -> list[Prompt]:
    """The rows' texts, in a seeded order. A text is held as a user's message: it has a place of origin and a split."""
    found: list[Prompt] = []
    for number, row in _rows(source, dropped):
        origin = Origin(source.source, number)
        text = row.get(source.text) if isinstance(row, dict) else None
        if not isinstance(text, str) or not text.strip():
            error = DataError(
                f"{origin}: `{source.text}` should hold a text, found {text!r}. Name the right key with `text`, or "
                "leave such rows out with on_bad_row=drop."
            )
            if source.on_bad_row == "error":
                raise error
            dropped.add("no text", str(origin))
            continue
        one = Prompt((Message("user", text),), origin)
        if source.split is None or not _is_split_by_hash(source) or _split(one) == source.split:
            found.append(one)
    if source.rows is not None and source.rows > len(found):
        raise DataError(f"data: {source.source}: {source.rows} rows asked for, there are {len(found)}. Lower `rows`.")
    if not found:
        raise DataError(f"data: {source.source}: no texts: the file or its split '{source.split}' is empty.")
    order = seeded_order(len(found), seed)
    return [found[index] for index in order[: source.rows]]


def _split(text: Prompt) -> str:
    return split_of(text, FILE_SPLITS)


def _is_split_by_hash(source: TextSource) -> bool:
    return source.source == MANUAL or reader_of(Path(source.source)) is not None


def _rows(source: TextSource, dropped: DroppedRows) -> Iterator[tuple[int, Any]]:
    path = Path(source.source)
    read = reader_of(path)
    if _is_split_by_hash(source) and source.split is not None and source.split not in FILE_SPLITS:
        known = ", ".join(FILE_SPLITS)
        raise DataError(f"data: {source.source} has no split '{source.split}'. Give one of: {known}, or none.")
    if source.source == MANUAL:
        return enumerate(({source.text: one} for one in _paragraphs()), start=1)
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
    """The manual's, each once: its chapters quote each other, and a text must not be trained on and held out too."""
    from pydoc_data.topics import topics

    parts = (" ".join(part.split()) for name in sorted(topics) for part in topics[name].split("\n\n"))
    return list(dict.fromkeys(part for part in parts if len(part) >= SHORTEST_PARAGRAPH))
