"""Rows left out, counted by reason; the first places of each reason are kept for a person to look at."""

import re
from collections import Counter
from dataclasses import dataclass, field

from onebase.errors import DataError

REASONS = 50
"""Distinct reasons that are counted; a file full of different ones must not fill the memory."""
PLACES = 5
"""Places that are kept for each reason."""
OTHER = "other reasons"

_PLACE = re.compile(r"^(?P<place>.*?:\d+(?::\d+)?): ")
"""file:line or file:line:column in front of a message."""


class TooManyError(Exception):
    """More rows were left out than the caller wanted to see."""


@dataclass
class DroppedRows:
    """Counts of what a source left out. Call it with the error of a row, or `add` a reason. TooManyError when there are
    `most` of them."""

    most: int | None = None
    counts: Counter[str] = field(default_factory=Counter)
    defects: int = 0
    """Errors among what is counted; the rest is what formats and settings leave out by their rules."""
    places: dict[str, list[str]] = field(default_factory=dict)

    def __call__(self, error: DataError) -> None:
        self.defects += 1
        message = str(error)
        match = _PLACE.match(message)
        if match is None:
            self.add(message.split(": ", 1)[-1])
        else:
            # The reason without its place: equal reasons are counted together.
            self.add(message[match.end() :], match["place"])

    def add(self, reason: str, place: str = "") -> None:
        if reason not in self.counts and len(self.counts) >= REASONS:
            reason = OTHER
        self.counts[reason] += 1
        places = self.places.setdefault(reason, [])
        if place and len(places) < PLACES:
            places.append(place)
        if self.most is not None and self.total >= self.most:
            raise TooManyError

    @property
    def total(self) -> int:
        return self.counts.total()

    @property
    def first(self) -> str:
        """The first reason, with the place of its first row; "" where nothing was left out."""
        reason = next(iter(self.counts), "")
        return ": ".join([*self.places.get(reason, [])[:1], reason])

    def summary(self) -> str:
        """` (3 rows dropped; 2: the most frequent reason and 1 more reasons)`, for an error; "" where none was."""
        if not self.total:
            return ""
        (reason, count), *others = self.counts.most_common()
        more = f" and {len(others)} more reasons" if others else ""
        return f" ({self.total} rows dropped; {count}: {reason.rstrip('.')}{more})"
