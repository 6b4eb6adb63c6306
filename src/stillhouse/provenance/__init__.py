"""Where a student comes from: the terms of its teacher, the manifest of a run, the model card.

The front door: names are imported when first used, so that importing the room costs nothing.
Nothing here is legal advice, and nothing here is signed.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillhouse.provenance.card import model_card
    from stillhouse.provenance.card_head import read_card_head
    from stillhouse.provenance.find import find_terms
    from stillhouse.provenance.manifest import (
        RECIPE_INPUT,
        STAGE_INPUT,
        Manifest,
        recipe_section_hash,
        versions,
    )
    from stillhouse.provenance.page import terms_page
    from stillhouse.provenance.terms import Terms, all_terms
    from stillhouse.provenance.verdict import (
        Verdict,
        explain,
        judge,
        naming_warning,
        require_all_allowed,
        require_allowed,
        together,
    )
    from stillhouse.provenance.verify import Verification, verify_run

_HOME = {
    "RECIPE_INPUT": "manifest",
    "STAGE_INPUT": "manifest",
    "Manifest": "manifest",
    "Terms": "terms",
    "Verdict": "verdict",
    "Verification": "verify",
    "all_terms": "terms",
    "explain": "verdict",
    "find_terms": "find",
    "judge": "verdict",
    "model_card": "card",
    "naming_warning": "verdict",
    "read_card_head": "card_head",
    "recipe_section_hash": "manifest",
    "require_all_allowed": "verdict",
    "require_allowed": "verdict",
    "terms_page": "page",
    "together": "verdict",
    "verify_run": "verify",
    "versions": "manifest",
}

__all__ = [
    "RECIPE_INPUT",
    "STAGE_INPUT",
    "Manifest",
    "Terms",
    "Verdict",
    "Verification",
    "all_terms",
    "explain",
    "find_terms",
    "judge",
    "model_card",
    "naming_warning",
    "read_card_head",
    "recipe_section_hash",
    "require_all_allowed",
    "require_allowed",
    "terms_page",
    "together",
    "verify_run",
    "versions",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
