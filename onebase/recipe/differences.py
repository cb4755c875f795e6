"""What differs between two recipes, or two texts, said so that a person sees it.

train.episodes: it had 32, this one says 64; chat.system: it had 'Be brief.', this one says None
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WIDTH = 60
"""Characters of a value that are shown."""
BEFORE = 20
"""Of these, characters in front of the first difference."""
MOST = 3
"""Keys that are named."""


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


ABSENT = _Absent()


@dataclass(frozen=True, kw_only=True)
class Difference:
    key: str
    had: Any
    given: Any


def differences(had: Any, given: Any, key: str = "") -> list[Difference]:
    """Every leaf in which two trees of dicts and lists differ, by its dotted key, in the order of the keys."""
    if isinstance(had, Mapping) and isinstance(given, Mapping):
        names = [*given, *(name for name in had if name not in given)]
        pairs = [(str(name), had.get(name, ABSENT), given.get(name, ABSENT)) for name in names]
    elif isinstance(had, list) and isinstance(given, list) and len(had) == len(given):
        pairs = [(str(index), a, b) for index, (a, b) in enumerate(zip(had, given, strict=True))]
    else:
        return [] if had == given else [Difference(key=key, had=had, given=given)]
    return [one for name, a, b in pairs for one in differences(a, b, f"{key}.{name}" if key else name)]


def told(rows: Sequence[Difference]) -> str:
    """The first of them with both values, and how many more there are."""
    words = list(dict.fromkeys(map(_told, rows)))
    more = f"; and {len(words) - MOST} more" if len(words) > MOST else ""
    return "; ".join(words[:MOST]) + more


def _told(one: Difference) -> str:
    had, given = both_shown(one.had, one.given)
    return f"{one.key}: it had {had}, this one says {given}"


def both_shown(had: Any, given: Any) -> tuple[str, str]:
    """Both values on one line each; of long ones the part around the first difference, so that they never look alike
    where they are not."""
    left, right = repr(had), repr(given)
    if max(len(left), len(right)) <= WIDTH:
        return left, right
    same = next((index for index, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), None)
    start = max(0, (min(len(left), len(right)) if same is None else same) - BEFORE)
    return _window(left, start), _window(right, start)


def _window(text: str, start: int) -> str:
    end = start + WIDTH
    return ("..." if start else "") + text[start:end] + ("..." if end < len(text) else "")
