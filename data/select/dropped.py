"""Rows left out, counted by reason; the first places of each reason are kept for a person to look at."""

import re
from collections import Counter

from onebase.errors import DataError

REASONS = 50
"""Distinct reasons that are told apart; a file full of different ones must not fill the memory."""
PLACES = 5
"""Places that are kept for each reason."""
OTHER = "other reasons"

_PLACE = re.compile(r"^(?P<place>.*?:\d+(?::\d+)?): ")
"""file:line or file:line:column in front of a message."""


class TooManyError(Exception):
    """More rows were left out than the one who counts wanted to see."""


class Dropped:
    """Counts of what a source left out. Call it with the error of a row, or `add` a reason. TooManyError when there are
    `most` of them."""

    def __init__(self, most: int | None = None) -> None:
        self.most = most
        self.counts: Counter[str] = Counter()
        self.defects = 0
        """Errors among what is counted; the rest is what formats and settings leave out by their rules."""
        self.places: dict[str, list[str]] = {}

    def __call__(self, error: DataError) -> None:
        self.defects += 1
        message = str(error)
        found = _PLACE.match(message)
        if found is None:
            self.add(message.split(": ", 1)[-1])
        else:
            # The reason without its place, so that equal reasons are counted together.
            self.add(message[found.end() :], found["place"])

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
