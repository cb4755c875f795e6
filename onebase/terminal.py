"""Text from files and other people's code, before it goes to a terminal."""

import re

# C0 but tab and line feed, DEL and C1, and the marks that turn the direction of writing or break a line.
_CONTROLS = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    """The text with each control character as its code (`\\x1b`), so that a terminal shows it and does not obey it."""
    return _CONTROLS.sub(lambda match: ascii(match[0])[1:-1], text)
