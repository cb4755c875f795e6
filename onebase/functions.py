"""Python functions that a recipe names."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

from onebase.errors import RecipeError

DOTTED = r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"
"""The name of a function, package.module:name."""


def load_function(dotted: str, key: str) -> Callable[..., Any]:
    """The function of that name, from an installed package or the folder that the command runs in; RecipeError where
    there is none. key: of the recipe, where the name stands."""
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
        raise RecipeError(f"{key}: '{dotted}' should name a function, and {module_name} {found}.")
    return function
