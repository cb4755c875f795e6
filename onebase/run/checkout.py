"""The commit of the code that is running."""

import subprocess
from pathlib import Path

from onebase.recipe.sections import FrozenModel

HOME = Path(__file__).resolve().parents[2]
"""The folder that holds our packages."""


class GitState(FrozenModel):
    commit: str | None
    dirty: bool | None


def git_state() -> GitState:
    """Commit, and whether tracked files differ from it; None outside a checkout."""

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(HOME), *arguments], capture_output=True, text=True, check=True, timeout=10
        ).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")).resolve() != HOME:
            return GitState(commit=None, dirty=None)
        return GitState(
            commit=git("rev-parse", "HEAD"), dirty=bool(git("status", "--porcelain", "--untracked-files=no"))
        )
    except (OSError, subprocess.SubprocessError):
        return GitState(commit=None, dirty=None)
