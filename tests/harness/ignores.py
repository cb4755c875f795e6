"""Lists every place where a checker is told to look away; exits with 1 where one lacks its rule or its reason.

# type: ignore[rule]  # reason        # pyright: ignore[rule] - reason        # noqa: RULE - reason
"""

import re
import subprocess
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MARK = re.compile(r"#\s*(?:type:\s*ignore\b|pyright:|mypy:|(?:ruff:\s*|flake8:\s*)?noqa\b)", re.IGNORECASE)
"""Where one begins. A comment of pyright or mypy that changes a whole file counts, and is never complete."""

WHOLE = re.compile(
    r"#\s*(?:(?:type|pyright):\s*ignore\[[\w, -]+\]\s*[-#]|(?:ruff:\s*)?noqa:\s*[A-Z]+\d+(?:,\s*[A-Z]+\d+)*\s*-)"
    r"\s*(?!type:|pyright:|noqa)\w"
)
"""Rules, then a reason, which another ignore is not."""


def sources() -> list[Path]:
    """Every Python file that git tracks."""
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "-z", "*.py"], capture_output=True, text=True, check=True
    )
    return [ROOT / name for name in listed.stdout.split("\0") if name and (ROOT / name).is_file()]


def is_whole(comment: str) -> bool:
    """Whether each ignore of a comment names its rules and gives a reason."""
    return all(WHOLE.match(comment, mark.start()) for mark in MARK.finditer(comment))


def find() -> list[tuple[str, str, bool]]:
    """(place, comment, whether it has rule and reason) of each."""
    comments = []
    for path in sources():
        with path.open("rb") as stream:
            for token in tokenize.tokenize(stream.readline):
                if token.type == tokenize.COMMENT and MARK.search(token.string):
                    place = f"{path.relative_to(ROOT)}:{token.start[0]}"
                    comments.append((place, token.string, is_whole(token.string)))
    return comments


def main() -> int:
    comments = find()
    for place, comment, _ in comments:
        print(f"{place}: {comment}")
    bare = [place for place, _, whole in comments if not whole]
    if bare:
        print(f"without rule or reason: {', '.join(bare)}")
        return 1
    print(f"{len(comments)} ignores, each with its rule and its reason")
    return 0


if __name__ == "__main__":
    sys.exit(main())
