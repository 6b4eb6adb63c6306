"""How good is it: held-out measures with clustered intervals, comparison, report.

The front door. Names are loaded when first used, so that importing it costs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .compare import Candidate, evaluate_models
    from .intervals import Estimate, exponential, interval, paired_difference
    from .measures import Measures, Reference, TeacherReference, measure
    from .report import write_report
    from .sampled import sample_and_score
    from .several import SeveralReferences
    from .table import results_table

_HOME = {
    "Candidate": "compare",
    "Estimate": "intervals",
    "Measures": "measures",
    "Reference": "measures",
    "SeveralReferences": "several",
    "TeacherReference": "measures",
    "evaluate_models": "compare",
    "exponential": "intervals",
    "interval": "intervals",
    "measure": "measures",
    "paired_difference": "intervals",
    "results_table": "table",
    "sample_and_score": "sampled",
    "write_report": "report",
}

__all__ = [
    "Candidate",
    "Estimate",
    "Measures",
    "Reference",
    "SeveralReferences",
    "TeacherReference",
    "evaluate_models",
    "exponential",
    "interval",
    "measure",
    "paired_difference",
    "results_table",
    "sample_and_score",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
