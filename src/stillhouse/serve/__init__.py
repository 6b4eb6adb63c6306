"""Answer in private: an OpenAI-compatible server on this machine, with a chat page.

The front door. Names are loaded when first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillhouse.serve.listen import serve

__all__ = ["serve"]


def __getattr__(name: str) -> Any:
    if name == "serve":
        from stillhouse.serve.listen import serve

        return serve
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
