"""What every source of data becomes: prompts, demonstrations and rankings, each with the place it came from."""

import hashlib
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal

from onebase.errors import DataError

Role = Literal["system", "user", "assistant"]
ROLES = ("system", "user", "assistant")
_ROLE = re.compile(rf"(?:^| )(?:{'|'.join(ROLES)}):(?: |$)")


@dataclass(frozen=True)
class Origin:
    """The row of a source, for error messages."""

    source: str
    line: int

    def __str__(self) -> str:
        return f"{self.source}:{self.line}"


@dataclass(frozen=True)
class Message:
    role: Role
    content: str


@dataclass(frozen=True)
class Prompt:
    """A conversation for the assistant to answer: an optional system message, then turns that end with a user's."""

    messages: tuple[Message, ...]
    origin: Origin
    meta: Mapping[str, Any] = field(default_factory=dict)
    """JSON-able facts about the prompt; for built-in tasks the family and what its check needs."""
    responses: ClassVar[tuple[str, ...]] = ()
    """Every record has `prompt` and `responses`, whatever its kind."""

    def __post_init__(self) -> None:
        turns = self.messages[1:] if self.messages and self.messages[0].role == "system" else self.messages
        if len(turns) < len(self.messages) and not self.messages[0].content.strip():
            raise DataError(f"{self.origin}: the system message is empty. Remove it or fill it in.")
        if not turns:
            raise DataError(f"{self.origin}: the prompt has no user message. Remove the row or fill it in.")
        for index, message in enumerate(turns):
            expected = "user" if index % 2 == 0 else "assistant"
            if message.role != expected:
                raise DataError(
                    f"{self.origin}: message {index + 1} is from '{message.role}', expected '{expected}'. "
                    "User and assistant take turns after an optional system message."
                )
            if not message.content.strip():
                raise DataError(
                    f"{self.origin}: message {index + 1} ({message.role}) is empty. Remove the row or fill it in."
                )
        if turns[-1].role != "user":
            raise DataError(f"{self.origin}: the prompt ends with the assistant's turn; it must end with the user's.")

    @property
    def prompt(self) -> "Prompt":
        return self

    @property
    def user_text(self) -> str:
        """The last user message: what to show a person."""
        return self.messages[-1].content


@dataclass(frozen=True)
class Demonstration:
    """A prompt and the response to imitate."""

    prompt: Prompt
    response: str

    def __post_init__(self) -> None:
        if not self.response.strip():
            raise DataError(f"{self.prompt.origin}: the response is empty. Remove the row or fill it in.")

    @property
    def responses(self) -> tuple[str, ...]:
        return (self.response,)


@dataclass(frozen=True)
class Ranking:
    """A prompt and K >= 2 responses in tiers: tier 0 is best, responses of one tier are tied."""

    prompt: Prompt
    responses: tuple[str, ...]
    tiers: tuple[int, ...]
    labels: tuple[str, ...] = ()
    """A name for each response, such as the flaw it shows; may be empty."""

    def __post_init__(self) -> None:
        where = self.prompt.origin
        if len(self.responses) < 2:
            raise DataError(f"{where}: a ranking needs at least 2 responses, found {len(self.responses)}.")
        if len(self.tiers) != len(self.responses):
            raise DataError(
                f"{where}: {len(self.responses)} responses but {len(self.tiers)} tiers; give one tier each."
            )
        if len(set(self.tiers)) < 2:
            raise DataError(f"{where}: all responses are tied, so the ranking has no information. Remove the row.")
        if self.labels and len(self.labels) != len(self.responses):
            raise DataError(
                f"{where}: {len(self.responses)} responses but {len(self.labels)} labels; give one each or none."
            )
        for index, response in enumerate(self.responses):
            if not response.strip():
                raise DataError(f"{where}: response {index + 1} is empty. Remove it or the row.")
            if response in self.responses[:index]:
                raise DataError(f"{where}: response {index + 1} is the same as an earlier one. Remove the copy.")

    @property
    def labeler(self) -> str | None:
        """Who ranked it, where the row has a key for it (`labeler`, `worker` ...); numbers count as names."""
        name = self.prompt.meta.get("labeler")
        return None if name is None or isinstance(name, bool) or str(name).strip() == "" else str(name)

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(better, worse) indices of all responses in different tiers. Losses of the reward model take `tiers`."""
        indices = range(len(self.responses))
        return [(better, worse) for better in indices for worse in indices if self.tiers[better] < self.tiers[worse]]


Record = Prompt | Demonstration | Ranking


def conversation_of(prompt: Prompt) -> str:
    """A prompt's whole text, in which two different ones differ."""
    return json.dumps([[message.role, message.content] for message in prompt.messages], ensure_ascii=False)


def normalised(prompt: Prompt) -> str:
    """The prompt's text with case, width and white space folded: equal for copies that only look different.

    A content that spells a role ("Hi assistant: Hello user: Bye") is marked with its length: it is one message, and not
    the conversation that it imitates.
    """
    turns: list[str] = []
    for message in prompt.messages:
        content = " ".join(unicodedata.normalize("NFKC", message.content).casefold().split())
        # Most texts have no role in them at all, which is seen far faster than what surrounds it.
        imitates_turns = any(f"{role}:" in content for role in ROLES) and _ROLE.search(content) is not None
        length = f"[{len(content)}] " if imitates_turns else ""
        turns.append(f"{message.role}: {length}{content}")
    return " ".join(turns)


def fingerprint(records: Iterable[Record]) -> str:
    """sha256 of the records' content in order; where they came from does not count."""
    digest = hashlib.sha256()
    for record in records:
        content = asdict(record)
        (content if isinstance(record, Prompt) else content["prompt"]).pop("origin")
        digest.update(json.dumps(content, sort_keys=True, ensure_ascii=True).encode() + b"\n")
    return digest.hexdigest()
