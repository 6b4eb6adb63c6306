"""Packages that can be called: ``stillhouse.evaluate(…)`` is ``stillhouse.evaluate.evaluate(…)``.

Four functions of the Python interface (evaluate, serve, trace, export) have the names of the packages that
they belong to. Python binds a package to its parent as soon as anything in it is imported, which would
replace a function of that name. So the name is always the package, and the package is callable.
"""

from __future__ import annotations

import inspect
import sys
from types import ModuleType
from typing import Any


class CallablePackage(ModuleType):
    """A package whose call is a call of its function of the same name."""

    @property
    def _function(self) -> Any:
        return getattr(self, self.__name__.rpartition(".")[2])

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)

    @property
    def __signature__(self) -> inspect.Signature:
        """The function's signature, for `help`, IPython and editors."""
        return inspect.signature(self._function)


def make_callable(name: str) -> None:
    """Makes the package ``name`` callable; its ``__init__`` calls this."""
    sys.modules[name].__class__ = CallablePackage
