"""Chat templates, and the assistant's turn: what a template renders behind its generation prompt is learned.

    rendered conversation       ... <|im_start|>assistant\\n   <think>\\n\\n</think>\\n\\n  An answer.  <|im_end|>
                                    generation prompt        seam                  content     end token
    learned                                                  [                                         ]

The seam is what the template writes before every answer: nothing (ChatML), a space (Vicuna, Llama 2), a header
(Harmony), an empty thought (Qwen3). It belongs to the response: a served adapter is given the generation prompt, and
the model has to write what comes behind it. The seam is cut off from texts that people read.
"""

import functools
import itertools
import re
from collections.abc import Mapping, Sequence
from typing import Any

from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from data.chat.marks import Marks
from data.records import Message
from onebase.errors import DataError

SYSTEM, FIRST, ANSWER, SECOND = "zqsystem", "zqfirst", "zqanswer", "zqsecond"
"""Contents that are recognised in a rendered text: no template writes them."""

CONVERSATIONS = (
    (Message("system", SYSTEM), Message("user", FIRST), Message("assistant", ANSWER), Message("user", SECOND)),
    (Message("user", FIRST), Message("assistant", ANSWER), Message("user", SECOND)),
    (Message("user", FIRST),),
)
"""To look at a template with, the one that shows most first: not every template takes a system message, or turns."""

QUESTION = (Message("user", "a"),)

ORDINARY = ("b", "Yes, it is.", "7 pears", "日本", "🙂 ok")
"""Answers that must follow the generation prompt's tokens with tokens of their own."""

ODD = ("", " b", "b ", "\nb", "\n\nb", "b\n", ".b", "(b)", "<b>", "- b")
"""Answers with first or last letters that may merge with the text beside them, or be trimmed."""


class Template:
    """The template of a tokenizer, with the recipe's system message."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, system: str | None) -> None:
        self.tokenizer = tokenizer
        self.system = () if system is None else (Message("system", system),)
        """The recipe's system message, for messages that bring none."""
        self.conversations = tuple(
            messages if messages[0].role == "system" else (*self.system, *messages) for messages in CONVERSATIONS
        )

    def text(
        self,
        messages: Sequence[Message] | Sequence[Mapping[str, Any]],
        *,
        generation: bool,
        tools: list[Any] | None = None,
    ) -> str:
        """The rendered conversation. generation: with the opening of an assistant's turn behind it.

        DataError where the template fails on it.
        """
        turns = [
            {"role": message.role, "content": message.content} if isinstance(message, Message) else dict(message)
            for message in messages
        ]
        try:
            rendered: Any = self.tokenizer.apply_chat_template(
                turns, tools=tools, tokenize=False, add_generation_prompt=generation
            )
        except Exception as error:  # a template is a program: it may raise whatever its expressions raise
            roles = ", ".join(turn["role"] for turn in turns)
            raise DataError(
                f"chat.template: the template fails on a conversation of {roles}: {error}. "
                "Leave out what it does not take (it may be chat.system), or pass another template."
            ) from None
        return rendered


class Turn:
    """An assistant's turn of one template and tokenizer; DataError where it cannot be separated from its prompt.

    Messages are passed with the recipe's system message (`Template.system`).
    """

    def __init__(self, template: Template, marks: Marks, stop_ids: frozenset[int]) -> None:
        self._template = template
        self._marks = marks
        self._ends = {text: number for text, number in marks.control.items() if number in stop_ids}
        self._stop = re.compile(marks.pattern_of(self._ends))
        self._content = re.compile(f"({marks.pattern_of(marks.added - marks.control.keys())})")
        self._end: str | None = None
        self._before = functools.cache(marks.plain)
        """Tokens of a text that answers are encoded behind."""
        self.question = (*template.system, *QUESTION)
        """A conversation to render answers behind that belong to none."""
        opened = template.text(self.question, generation=True)
        end = self._stop.findall(self.tail(self.question, "b", opened))[-1]
        self._end, self.end_id = end, self._ends[end]
        self._anchors = self._find_anchors(opened)
        self._require_same_everywhere()
        ordinary = [self.ids(self.tail(self.question, answer, opened), held=False) for answer in ORDINARY]
        alike = itertools.takewhile(lambda column: len(set(column)) == 1, zip(*ordinary, strict=False))
        self.seam = tuple(column[0] for column in alike)
        """Tokens that every answer begins with."""

    def tail(self, messages: Sequence[Message], answer: str, opened: str) -> str:
        """The rendered answer: everything behind the prompt, up to the end token and with it. opened: the rendered
        prompt."""
        whole = self._template.text((*messages, Message("assistant", answer)), generation=False)
        if not whole.startswith(opened):
            raise DataError(
                "chat.template: a rendered answer does not begin with its own generation prompt, so responses cannot "
                "be separated from prompts. Pass a template with a generation prompt that is a prefix, with "
                "chat.template=FILE."
            )
        behind = whole[len(opened) :]
        stop = self._stop.search(behind)
        if stop is None or self._end not in (None, stop[0]):
            closed = "by no stop token" if stop is None else f"by {stop[0]}, where others are closed by {self._end}"
            raise DataError(
                f"chat.template: the assistant's turn {answer[:60]!r} is closed {closed} (stop tokens: "
                f"{', '.join(self._ends)}), so the model would never learn to stop. Pass another template."
            )
        tail = behind[: stop.end()]
        # Templates may trim an answer. One that drops a part of it, such as its reasoning, would leave that unlearned.
        place = 0
        for piece in self._content.split(answer):
            where = tail.find(piece.strip(), place)
            if where < 0:
                raise DataError(
                    f"chat.template: the template leaves out or changes a part of the answer: {piece.strip()[:60]!r} "
                    "is not in what it renders. Remove it from the row, or pass a template that keeps it."
                )
            place = where + len(piece.strip())
        return tail

    def ids(self, tail: str, *, held: bool) -> tuple[int, ...]:
        """The tokens of a rendered answer behind its prompt. held: it was rendered of held contents."""
        for anchor in self._anchors:
            ids = self._behind(anchor, tail, held=held)
            if ids is not None:
                return ids
            if tail[0].isalnum():
                break
        raise DataError(
            f"chat.template: the first letters of the answer {tail[:60]!r} merge with the end of the prompt: the "
            "model would be prompted with other tokens than it learns from. Change the answer's beginning, or pass "
            "another template."
        )

    def without_seam(self, ids: Sequence[int]) -> Sequence[int]:
        """A response's tokens behind what the template writes before an answer, where they begin with that.

        A header of control tokens (Harmony's) may come again, behind a thought: the answer is behind the last one.
        """
        width = len(self.seam)
        last = len(ids) - width if self._marks.ids.intersection(self.seam) else 0
        for start in range(last, -1, -1) if width else ():
            if tuple(ids[start : start + width]) == self.seam:
                return ids[start + width :]
        return ids

    def _behind(self, anchor: str, tail: str, *, held: bool) -> tuple[int, ...] | None:
        """Tokens of a tail that follows the anchor; None where the tail changes the anchor's own."""
        encode = self._marks.encode if held else self._marks.plain
        before, whole = self._before(anchor), encode(anchor + tail)
        return tuple(whole[len(before) :]) if whole[: len(before)] == before else None

    def _find_anchors(self, opened: str) -> tuple[str, ...]:
        """The end of a prompt, and texts behind which answers have the tokens that they have behind a prompt.

        SentencePiece puts a space before a text that is encoded alone. An answer is therefore encoded behind a prompt,
        and the prompt's tokens are removed. An answer that begins with a line break may merge with the prompt's last
        letter. It is then encoded behind another text; with byte-level tokenizers, behind an empty one.
        """
        expected: dict[str, tuple[int, ...]] = {}
        for answer in (*ORDINARY, *ODD):
            try:
                tail = self.tail(self.question, answer, opened)
            except DataError:
                if answer in ORDINARY:
                    raise
                continue
            ids = self._behind(opened, tail, held=False)
            if ids is not None and ids and ids[-1] == self.end_id and self.end_id not in ids[:-1]:
                expected[tail] = ids
            elif answer in ORDINARY:
                raise DataError(
                    f"chat.template: the tokens of the generation prompt, or of the end, change with the answer "
                    f"{answer!r} beside them, so training and sampling would use other tokens. A prompt that ends with "
                    "a space is an example. Pass a template with a generation prompt that ends with a token or a line "
                    "break, with chat.template=FILE."
                )

        def agrees(anchor: str, *also: None) -> bool:
            behind = {tail: self._behind(anchor, tail, held=False) for tail in expected}
            return all(behind[tail] in (ids, *also) for tail, ids in expected.items())

        # Text before the prompt's last control token seldom matters, and may be a long system message.
        short = opened[self._marks.last_start(opened) :]
        others = [anchor for anchor in ("", str(self._end), "\n", ".") if agrees(anchor, None)]
        return (short if agrees(short) else opened, *others)

    def _require_same_everywhere(self) -> None:
        """What follows a short prompt must follow a long one."""
        for messages in self._template.conversations:
            try:
                opened = self._template.text(messages, generation=True)
                tail = self.tail(messages, "b", opened)
            except DataError:  # the template takes no such conversation: a row of that kind will be refused
                continue
            if self._behind(opened, tail, held=False) != self.ids(tail, held=False):
                raise DataError(
                    "chat.template: an answer's tokens depend on the conversation before it, so it cannot be encoded "
                    "apart. Pass another template."
                )
