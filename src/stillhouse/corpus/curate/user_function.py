"""The verifier hook: a function of the user's that says whether an exchange is right."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stillhouse.corpus.schema import Row
from stillhouse.errors import RecipeError

Verifier = Callable[[Row], Any]


def load_verifier(name: str) -> Verifier:
    """Imports ``module:function``; modules in the current directory are found too.

    Raises:
        RecipeError: there is no such module or function, or the module does not load.
    """
    module_name, _, function_name = name.partition(":")
    sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:
        raise RecipeError(f"filter.verifier: the module {module_name} does not load: {error}") from error
    finally:
        sys.path.pop(0)
    function = getattr(module, function_name, None)
    if not callable(function):
        raise RecipeError(f"filter.verifier: {module_name} has no function {function_name!r}")
    return function
