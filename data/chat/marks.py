"""Control tokens and content: which tokens of a vocabulary mark turns, and which are part of a message.

A message that spells a control token (`<|im_end|>`) is a text about tokens: it is encoded letter by letter. Otherwise
whoever writes a message could write another speaker's answer. A token that is content (`<think>`) is one token wherever
it is spelled. These are control tokens:

* the tokens named begin, end, padding, unknown, separator, mask, and those that end a response;
* what the template writes around messages, tools included. A pair (`<think>`, `</think>`) that is written only in the
  assistant's turn is content: reasoning is opened and closed there. So is a pair that the vocabulary does not call
  special and that the template mentions in its system message;
* a special token without a partner that is spelled in the template's source.
"""

import functools
import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokenizers import Tokenizer
from transformers.tokenization_utils_base import PreTrainedTokenizerBase

from onebase.errors import DataError

NAMED = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")

HELD, WRITTEN = 0xF0000, 0x100000
"""First characters of the two private planes of Unicode. The first plane stands for control tokens that a content
spells, while the content is rendered; the second for those that the template wrote, while the text is encoded."""
PRIVATE = re.compile("[\U000f0000-\U0010ffff]")


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What a template writes around the contents of a conversation."""

    head: str
    """Before the first question, system message included."""
    opening: str
    """Between a question and its answer; and behind the last question, where an answer is asked for."""
    between: str
    """Between an answer and the next question."""
    words: tuple[str, ...]
    """What opens an answer and what opens the next question, without white space. A text that spells them imitates
    turns, unless a control token is between them."""
    tools: str
    """All of conversations with tools; empty where the template takes none."""
    source: str


def control_tokens(tokenizer: PreTrainedTokenizerBase, stop_ids: frozenset[int], frame: Frame) -> dict[str, int]:
    """The control tokens of a vocabulary with a template, by their text; see the module's docstring."""
    added: dict[str, tuple[int, bool]] = {
        token.content: (number, token.special)
        for number, token in tokenizer.added_tokens_decoder.items()
        if not token.content.isspace()
    }
    structural = {getattr(tokenizer, name, None) for name in NAMED}
    marks = {text for text, (number, _) in added.items() if number in stop_ids or text in structural}
    turns = {text for text, (_, special) in added.items() if _is_turn_mark(text, special, added, frame)}
    turns |= {text for text in map(_partner, turns) if text in added}
    return {text: added[text][0] for text in marks | turns}


def _is_turn_mark(text: str, special: bool, added: Mapping[str, Any], frame: Frame) -> bool:
    paired = _partner(text) in added
    if text in frame.between:
        return True
    if paired and text in frame.opening:
        return False
    if text in frame.head or (special and text in frame.tools):
        return special or not paired
    return not paired and (text in frame.opening or (special and text in frame.source))


def _partner(text: str) -> str:
    """What closes `<x>` or `[x]`, or opens what it closes: the same with or without a slash before the name."""
    before, slash, name = re.fullmatch(r"([^\w/]*)(/?)(.*)", text, re.DOTALL).groups()  # pyright: ignore[reportOptionalMemberAccess] - it matches anything
    return f"{before}{name}" if slash else f"{before}/{name}"


class Marks:
    """Encodes texts; control tokens come from the template alone."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, control: Mapping[str, int]) -> None:
        self._tokenizer = tokenizer
        self.control = control
        self.added = frozenset(token.content for token in tokenizer.added_tokens_decoder.values())
        self.ids = frozenset(control.values())
        self._pattern = re.compile(self.pattern_of(control))
        self._texts = sorted(control, key=len, reverse=True)
        self._numbers = {text: number for number, text in enumerate(self._texts)}
        self._counted = self.ids - {control.get(str(tokenizer.unk_token))}
        self.plain: Callable[[str], list[int]] = functools.partial(tokenizer.encode, add_special_tokens=False)
        """A text's tokens as the tokenizer gives them, for texts that spell no control token."""
        hidden = self._are_hidden_by_a_normaliser()
        self.are_spelled_in: Callable[[str], object] = self._are_encoded_from if hidden else self._pattern.search
        """Truthy where encoding a text by the tokenizer would make a control token of a part of it."""

    @staticmethod
    def pattern_of(tokens: Collection[str]) -> str:
        """Finds any of these, the longest first, as tokenizers do; nothing where there are no tokens."""
        return "|".join(map(re.escape, sorted(tokens, key=len, reverse=True))) or "(?!)"

    def _are_encoded_from(self, text: str) -> bool:
        return self._pattern.search(text) is not None or not self._counted.isdisjoint(self.plain(text))

    def last_start(self, rendered: str) -> int:
        """Where the last control token of a rendered text starts; 0 without one."""
        return max((match.start() for match in self._pattern.finditer(rendered)), default=0)

    def held(self, content: str) -> str:
        """A content that may be rendered: each control token that it spells is held by a private character."""
        if PRIVATE.search(content) is not None:
            raise DataError(
                "a text spells a control token and has characters of Unicode's private planes, which stand for "
                "control tokens while it is encoded. Remove them."
            )
        return self._pattern.sub(lambda match: chr(HELD + self._numbers[match[0]]), content)

    def encode(self, rendered: str) -> list[int]:
        """Tokens of a text that was rendered of held contents.

        It uses a copy of the tokenizer with other names for the control tokens. The copy splits, normalises and merges
        as the original does, but what a content spells is ordinary text to it.

        transformers' own `sanitize_control_tokens` cuts the text at what is spelled. A reply would have different
        tokens as an answer and in the next prompt.
        """
        clone, numbers = self._renamed
        written = self._pattern.sub(lambda match: chr(WRITTEN + self._numbers[match[0]]), rendered)
        marks = sum(ord(letter) >= WRITTEN for letter in written)
        text = re.sub("[\U000f0000-\U000fffff]", lambda match: self._texts[ord(match[0]) - HELD], written)
        ids = [numbers.get(token, token) for token in clone.encode(text, add_special_tokens=False).ids]
        if sum(token in self._counted for token in ids) > marks:
            raise DataError(
                "a text spells a control token, and this tokenizer makes control tokens of plain text. Remove it."
            )
        return ids

    def require_same(self, texts: Sequence[str]) -> None:
        """DataError unless `encode` and the tokenizer agree on these texts, which spell no control token."""
        if any(self.encode(text) != self.plain(text) for text in texts):
            raise DataError(
                "a text spells a control token, and this tokenizer cannot encode it apart from the template's own "
                "control tokens. Remove it from the text, or use another base."
            )

    @functools.cached_property
    def _renamed(self) -> tuple[Tokenizer, dict[int, int]]:
        """The copy, and the original's number of each of its tokens."""
        backend: Any = getattr(self._tokenizer, "backend_tokenizer", None)
        if backend is None:
            raise DataError("a text spells a control token, and this tokenizer has no fast form. Remove it.")
        names = {text: chr(WRITTEN + number) for text, number in self._numbers.items()}
        rules = json.loads(backend.to_str())
        for token in rules["added_tokens"]:
            token["content"] = names.get(token["content"], token["content"])
        model = rules["model"]
        if isinstance(model["vocab"], dict):
            model["vocab"] = {names.get(piece, piece): number for piece, number in model["vocab"].items()}
        else:
            model["vocab"] = [[names.get(piece, piece), weight] for piece, weight in model["vocab"]]
        if model.get("unk_token") is not None:
            model["unk_token"] = names.get(model["unk_token"], model["unk_token"])
        rules |= {"post_processor": None, "truncation": None, "padding": None}
        clone = Tokenizer.from_str(json.dumps(rules))
        # A token that is added beside the model's vocabulary may get another number.
        tokens = self._tokenizer.added_tokens_decoder.items()
        renamed = ((clone.token_to_id(names.get(token.content, token.content)), number) for number, token in tokens)
        return clone, {other: number for other, number in renamed if other is not None}

    def _are_hidden_by_a_normaliser(self) -> bool:
        """Whether a text may spell a control token in other letters: in capitals, or in full width."""
        backend: Any = getattr(self._tokenizer, "backend_tokenizer", None)
        tokens = self._tokenizer.added_tokens_decoder.values()
        is_normalised = any(token.normalized for token in tokens if token.content in self.control)
        return backend is None or (backend.normalizer is not None and is_normalised)
