"""A student as a file for llama.cpp and Ollama: GGUF, checked against the model before it takes its name.

The front door. The names are loaded when first used, so that importing it costs no numpy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillhouse.export.write import Exported, export_gguf

__all__ = ["Exported", "export_gguf"]


def __getattr__(name: str) -> Any:
    if name in __all__:
        from stillhouse.export import write

        return getattr(write, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
