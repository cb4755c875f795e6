"""Which keys of a file's rows are not read: `onebase data check` names them."""

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

from data.formats.meaning import is_filled

DISTINCT = 500
"""Names that are counted; a file in which every row has other keys must not fill the memory."""
SHOWN = 12
LONGEST_NAME = 60
DEEPEST = 6
"""Levels of a row that are looked into; no format has more."""


class Watched(dict[str, Any]):
    """A row that remembers which of its keys were read, within its parts as well."""

    def __init__(self, row: dict[str, Any], depth: int) -> None:
        super().__init__((key, _watched(value, depth + 1)) for key, value in row.items())
        self.read: set[str] = set()

    def __getitem__(self, key: str) -> Any:
        self.read.add(key)
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)

    def __iter__(self) -> Iterator[str]:  # without it `{**row}` copies a row without calling our methods
        return super().__iter__()


def _watched(value: Any, depth: int) -> Any:
    if depth > DEEPEST:
        return value
    if isinstance(value, dict):
        return Watched(value, depth)
    return [_watched(entry, depth + 1) for entry in value] if isinstance(value, list) else value


class Unread:
    """Counts, by name, the rows in which a filled key was not read."""

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()
        self.others = 0
        """Keys that came after DISTINCT names."""
        self._place = ""

    def watch(self, rows: Iterator[tuple[int, Any]], source: str) -> Iterator[tuple[int, Any]]:
        """The rows; the keys of each are counted when the next one is taken."""
        for line, row in rows:
            watched = _watched(row, 0)
            self._place = f"{source}:{line}"
            yield line, watched
            if not self._place:
                continue
            for name in set(_unread(watched, "")):
                if name in self.rows or len(self.rows) < DISTINCT:
                    self.rows[name] += 1
                else:
                    self.others += 1

    def watch_drops(self, count: Callable[..., None]) -> Callable[..., None]:
        """The same report of an error, or note of a reason and a place, which marks the row at hand as left out."""

        def watched(*arguments: Any) -> None:
            # A row left out as a whole is not counted. Parts of one have a longer place.
            if f"{arguments[-1]}: ".startswith(f"{self._place}: "):
                self._place = ""
            count(*arguments)

        return watched

    def summary(self) -> str:
        """`not read: a (3 rows), b (1 row)`, the most frequent first; "" where all was read."""
        named = [f"{_shown(name)} ({count} row{'s'[: count != 1]})" for name, count in self.rows.most_common(SHOWN)]
        more = len(self.rows) - len(named) + self.others
        return f"not read: {', '.join(named)}{f', and {more} more keys' if more else ''}" if named else ""


def _unread(row: Watched, path: str) -> Iterator[str]:
    for key, value in row.items():
        if not is_filled(value):
            continue
        if key not in row.read:
            yield path + key
            continue
        place, parts = (f"{path}{key}[].", value) if isinstance(value, list) else (f"{path}{key}.", [value])
        for part in parts:
            if isinstance(part, Watched) and part.read:  # one of which nothing was read was taken as a whole
                yield from _unread(part, place)


def _shown(name: str) -> str:
    short = name if len(name) <= LONGEST_NAME else name[:LONGEST_NAME] + "..."
    return short if short.isprintable() else ascii(short)[1:-1]
