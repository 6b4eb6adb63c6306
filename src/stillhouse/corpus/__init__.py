"""What was said: prompts, the schema, the store on disk, collecting, and filters.

The front door. Names are loaded when first used, so that importing it costs no pyarrow.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillhouse.corpus.collecting import CollectSummary, collect
    from stillhouse.corpus.context import Context, load_context
    from stillhouse.corpus.filtering import FilterSummary, filter_corpus
    from stillhouse.corpus.held_out import split_held_out
    from stillhouse.corpus.messages import assistant_message
    from stillhouse.corpus.prompts import Prompt, load_prompts
    from stillhouse.corpus.schema import REJECT_SCHEMA, SCHEMA
    from stillhouse.corpus.selecting import SelectSummary, read_pass_rates, select_corpus
    from stillhouse.corpus.store import Corpus
    from stillhouse.corpus.verifier import load_verifier

_HOME = {
    "assistant_message": "messages",
    "REJECT_SCHEMA": "schema",
    "SCHEMA": "schema",
    "CollectSummary": "collecting",
    "Context": "context",
    "Corpus": "store",
    "FilterSummary": "filtering",
    "Prompt": "prompts",
    "SelectSummary": "selecting",
    "collect": "collecting",
    "filter_corpus": "filtering",
    "load_context": "context",
    "load_prompts": "prompts",
    "load_verifier": "verifier",
    "read_pass_rates": "selecting",
    "select_corpus": "selecting",
    "split_held_out": "held_out",
}

__all__ = [
    "REJECT_SCHEMA",
    "SCHEMA",
    "CollectSummary",
    "Context",
    "Corpus",
    "FilterSummary",
    "Prompt",
    "SelectSummary",
    "assistant_message",
    "collect",
    "filter_corpus",
    "load_context",
    "load_prompts",
    "load_verifier",
    "read_pass_rates",
    "select_corpus",
    "split_held_out",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
