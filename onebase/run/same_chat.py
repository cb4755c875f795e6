"""Whether two stages make the same tokens of a conversation, and where not, in which text they differ.

A record knows system message and chat template by one hash. If the hash differs, both texts are almost always
available: a finished stage keeps its recipe and, in tokenizer/, its template.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import zip_longest

from onebase.errors import RecordError
from onebase.files.json_file import read_object
from onebase.files.writing import short_hash
from onebase.model import base as bases
from onebase.model.identity import TokenizerIdentity
from onebase.recipe.differences import ABSENT, both_shown
from onebase.recipe.sections import BaseSection, ChatSection
from onebase.run.record import FinishedStage

TEMPLATE = "tokenizer/chat_template.jinja"
"""Where transformers writes a template; older versions had it in tokenizer_config.json."""
OLD = "tokenizer/tokenizer_config.json"
LARGEST = 2**28
"""Bytes of the latter."""
CHECKS = (
    ("tokenizer_sha256", "tokenizer", "Use the base's own tokenizer files."),
    (
        "template_sha256",
        "chat template or system message",
        "Give chat.template and chat.system as that stage had them.",
    ),
    ("pad_id", "pad token", "Use the base's own tokenizer files."),
    ("stop_ids", "stop tokens", "Use the base's own generation_config.json."),
)
"""Fields of a tokenizer's identity, in words, with what to do where they differ."""


@dataclass(frozen=True, kw_only=True)
class ChatTexts:
    """What turns a conversation into one text."""

    system: str | None
    template: str | None
    """None where it is not known."""
    place: str
    """Place of the template, as an error names it."""

    @classmethod
    def of_stage(cls, finished: FinishedStage) -> "ChatTexts":
        files = [name for name in (TEMPLATE, OLD) if name in finished.record.files]
        template, place = None, files[0] if files else "tokenizer"
        if place == TEMPLATE:
            template = (finished.folder / place).read_text(encoding="utf-8", errors="replace")
        elif files:
            template = read_object(finished.folder / place, largest=LARGEST)[0].get("chat_template")
        chat = finished.record.recipe.get("chat")
        system = chat.get("system") if isinstance(chat, dict) else None
        return cls(
            system=system if isinstance(system, str) else None,
            template=template if isinstance(template, str) else None,
            place=str(finished.folder / place),
        )

    @classmethod
    def of_recipe(cls, base: BaseSection, chat: ChatSection) -> "ChatTexts":
        template = bases.load_tokenizer(base, chat)[0].chat_template
        place = f"the template of {base.model}" if chat.template is None else str(chat.template)
        return cls(system=chat.system, template=template if isinstance(template, str) else None, place=place)


def require(finished: FinishedStage, tokenizer: TokenizerIdentity, texts: Callable[[], ChatTexts]) -> None:
    """RecordError unless prompts become the same tokens as in `finished`. texts: of what it is compared with; read only
    for the error."""
    theirs = finished.record.tokenizer
    if theirs.tokenizer_sha256 == tokenizer.tokenizer_sha256 and theirs.template_sha256 != tokenizer.template_sha256:
        message = difference(finished, ChatTexts.of_stage(finished), texts())
        if message is not None:
            raise RecordError(message)
    for field, words, advice in CHECKS:
        expected, actual = getattr(theirs, field), getattr(tokenizer, field)
        if expected != actual:
            raise RecordError(
                f"chat: {finished.folder} was trained with another {words}: expected {short_hash(expected)}, "
                f"found {short_hash(actual)}. {advice}"
            )


def difference(finished: FinishedStage, before: ChatTexts, now: ChatTexts) -> str | None:
    """The error that shows both texts; None where the texts that are known are equal."""
    if before.system != now.system:
        theirs, ours = both_shown(before.system, now.system)
        return (
            f"chat.system: {finished.folder} was trained with another system message: expected {theirs}, found {ours}. "
            "Give chat.system as that stage had it (null: none of the recipe's own)."
        )
    if before.template is None or now.template is None or before.template == now.template:
        return None
    lines = zip_longest(before.template.split("\n"), now.template.split("\n"), fillvalue=ABSENT)
    number, pair = next((number, both) for number, both in enumerate(lines, start=1) if both[0] != both[1])
    theirs, ours = both_shown(*pair)
    return (
        f"chat.template: {finished.folder} was trained with another chat template: {before.place} and {now.place} "
        f"differ first in line {number}: expected {theirs}, found {ours}. Give chat.template={before.place}."
    )
