"""Paths as users write them."""

from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from onebase.errors import InputError


def _expanded(path: Path) -> Path:
    """The path with `~` and `~user` as home folders; ValueError for an unknown user or an impossible path."""
    text = str(path)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"is not UTF-8 text: {text!r}. Give another name") from None
    if "\0" in text:
        raise ValueError(f"holds a NUL character: {text!r}. Give another name")
    try:
        return path.expanduser()
    except RuntimeError:
        raise ValueError(f"'{path}' names the home folder of a user that there is not. Write the path out") from None


UserPath = Annotated[Path, AfterValidator(_expanded)]
"""A path in a recipe: `~` is the home folder, also where no shell has put it there."""


def expanded(path: Path | str) -> Path:
    """A path from the command line, with `~` as the home folder; InputError where it cannot be one."""
    try:
        return _expanded(Path(path))
    except ValueError as error:
        raise InputError(f"{str(path)!r}: {error}.") from None
