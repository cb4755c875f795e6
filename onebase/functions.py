"""Python functions that a recipe names."""

import functools
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any

from onebase.errors import RecipeError

DOTTED = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
"""The name of a function, package.module:name."""


def load_function(dotted: str, key: str, *, takes: Sequence[str] = ()) -> Callable[..., Any]:
    """The function of that name, from an installed package or the folder that the command runs in; RecipeError where
    there is none. key: of the recipe, where the name stands. takes: what it is called with, by position."""
    module_name, _, name = dotted.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # whatever a user's module raises while it is imported
        raise RecipeError(
            f"{key}: the module '{module_name}' of '{dotted}' cannot be imported "
            f"({type(error).__name__}: {error}). It is looked for in the folder that the command runs in and among "
            "installed packages."
        ) from error
    function = getattr(module, name, None)
    if not callable(function):
        found = "has nothing of that name" if function is None else f"has a {type(function).__name__} there"
        place = getattr(module, "__file__", None) or "no file"
        raise RecipeError(
            f"{key}: '{dotted}' should name a function, and {module_name} ({place}) {found}. A file of one's own that "
            "is called like an installed package is not found: give it another name."
        )
    if takes:
        _require_signature(function, takes, f"{key}: '{dotted}'")
    return function


def place_of(error: BaseException, function: Callable[..., Any]) -> str:
    """file:line of what went wrong in a user's function: the last line of the function's own file on the way there,
    rather than that of a library which it calls."""
    frames = traceback.extract_tb(error.__traceback__)
    whole = function.func if isinstance(function, functools.partial) else inspect.unwrap(function)
    code = getattr(whole if hasattr(whole, "__code__") else type(whole).__call__, "__code__", None)
    own = [frame for frame in frames if code is not None and frame.filename == code.co_filename]
    frame = (own or frames)[-1]
    return f"{frame.filename}:{frame.lineno}"


def _require_signature(function: Callable[..., Any], takes: Sequence[str], what: str) -> None:
    """RecipeError where the function cannot be called with so many arguments."""
    try:
        # Not that of what it wraps: the wrapper is what is called.
        signature = inspect.signature(function, follow_wrapped=False)
    except (TypeError, ValueError):  # built in, without a signature to look at
        return
    try:
        signature.bind(*takes)
    except TypeError as error:
        raise RecipeError(
            f"{what} is called with ({', '.join(takes)}), and its definition takes {signature}: {error}."
        ) from error
