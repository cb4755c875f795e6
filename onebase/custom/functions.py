"""Python functions that a recipe names."""

import functools
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any

from onebase.custom.custom_calls import CallError, call
from onebase.custom.process_state import COMPUTING
from onebase.errors import RecipeError

DOTTED = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
"""The name of a function, package.module:name."""


def load_function(dotted: str, key: str, *, takes: Sequence[str] = ()) -> Callable[..., Any]:
    """The function of that name, from an installed package or the folder that the command runs in; RecipeError if it
    does not exist.

    key: of the recipe, with the name. takes: what it is called with, by position.
    """
    module_name, _, name = dotted.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())

    def look() -> tuple[Any, Any]:
        module = importlib.import_module(module_name)
        return module, getattr(module, name, None)

    try:
        module, function = call(look, seconds=None, seed=0, settings=COMPUTING)
    except CallError as error:  # whatever a user's module does while it is imported
        raise RecipeError(
            f"{key}: the module '{module_name}' of '{dotted}' cannot be imported: it {error}. It is looked for in the "
            "folder that the command runs in and among installed packages."
        ) from error
    if not callable(function):
        mistake = "has nothing of that name" if function is None else f"has a {type(function).__name__} there"
        place = getattr(module, "__file__", None) or "no file"
        raise RecipeError(
            f"{key}: '{dotted}' should name a function, and {module_name} ({place}) {mistake}. "
            "A file with the name of an installed package is not found: give it another name."
        )
    _require_answer(function, f"{key}: '{dotted}'")
    if takes:
        _require_signature(function, takes, f"{key}: '{dotted}'")
    return function


def _require_answer(function: Callable[..., Any], what: str) -> None:
    """RecipeError where a call gives something that is still to be run, and not an answer."""
    whole: Any = function.func if isinstance(function, functools.partial) else function
    for code in (whole, type(whole).__call__):
        later = inspect.iscoroutinefunction(code) or inspect.isasyncgenfunction(code)
        if later or inspect.isgeneratorfunction(code):
            kind = "an `async def`" if later else "a generator (it has a `yield`)"
            raise RecipeError(f"{what} is {kind}: a call of it gives no answer. Write a `def` that returns one.")


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
