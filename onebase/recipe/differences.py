"""What differs between two recipes, or two texts, as a person reads it.

train.episodes: it had 32, this one says 64; chat.system: it had 'Be brief.', this one says None
"""

from collections.abc import Mapping, Sequence
from typing import Any

WIDTH = 60
"""Characters of a value that are shown."""
BEFORE = 20
"""Of these, characters in front of the first difference."""
SHOWN = 3
"""Keys that are named."""


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


ABSENT = _Absent()


Difference = tuple[str, Any, Any]
"""Key, and its value before and now."""


def differences(before: Any, now: Any, key: str = "") -> list[Difference]:
    """Every leaf in which two trees of dicts and lists differ, by its dotted key, in the order of the keys."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        names = [*now, *(name for name in before if name not in now)]
        pairs = [(str(name), before.get(name, ABSENT), now.get(name, ABSENT)) for name in names]
    elif isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = [(str(index), a, b) for index, (a, b) in enumerate(zip(before, now, strict=True))]
    else:
        return [] if before == now else [(key, before, now)]
    return [leaf for name, a, b in pairs for leaf in differences(a, b, f"{key}.{name}" if key else name)]


def summary(rows: Sequence[Difference]) -> str:
    """The first of them with both values, and how many more there are."""
    words = list(dict.fromkeys(_in_words(*row) for row in rows))
    more = f"; and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return "; ".join(words[:SHOWN]) + more


def _in_words(key: str, before: Any, now: Any) -> str:
    had, says = both_shown(before, now)
    return f"{key}: it had {had}, this one says {says}"


def both_shown(before: Any, now: Any) -> tuple[str, str]:
    """Both values on one line each. Long ones are cut around the first difference: they never look alike where they
    are not."""
    left, right = repr(before), repr(now)
    if max(len(left), len(right)) <= WIDTH:
        return left, right
    same = next((index for index, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), None)
    start = max(0, (min(len(left), len(right)) if same is None else same) - BEFORE)
    return _window(left, start), _window(right, start)


def _window(text: str, start: int) -> str:
    end = start + WIDTH
    return ("..." if start else "") + text[start:end] + ("..." if end < len(text) else "")
