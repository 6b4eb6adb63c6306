"""Is an answer right? Scores from 0 to 1, from verifiers that cannot stop a run.

The front door. Names are loaded when first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillhouse.verifiers.opened import Verifiers, check_verifiers, open_verifier
    from stillhouse.verifiers.types import Answer, Score

_HOME = {
    "Answer": "types",
    "Score": "types",
    "Verifiers": "opened",
    "check_verifiers": "opened",
    "open_verifier": "opened",
}

__all__ = ["Answer", "Score", "Verifiers", "check_verifiers", "open_verifier"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
