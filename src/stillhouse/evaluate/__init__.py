"""How good is it: held-out measures with clustered intervals, comparison, report.

The front door. Names are loaded when first used, so that importing it costs no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillhouse.evaluate.compare import Candidate, evaluate_models
    from stillhouse.evaluate.intervals import Estimate, exponential, interval, paired_difference
    from stillhouse.evaluate.measures import Measures, Reference, TeacherReference, measure
    from stillhouse.evaluate.report import write_report
    from stillhouse.evaluate.sampled import Judged, judge_answers, sample_and_score
    from stillhouse.evaluate.several import SeveralReferences
    from stillhouse.evaluate.study import study_page, study_results, study_table
    from stillhouse.evaluate.table import results_table

_HOME = {
    "Candidate": "compare",
    "Estimate": "intervals",
    "Judged": "sampled",
    "Measures": "measures",
    "Reference": "measures",
    "SeveralReferences": "several",
    "TeacherReference": "measures",
    "evaluate_models": "compare",
    "exponential": "intervals",
    "interval": "intervals",
    "judge_answers": "sampled",
    "measure": "measures",
    "paired_difference": "intervals",
    "results_table": "table",
    "sample_and_score": "sampled",
    "study_page": "study",
    "study_results": "study",
    "study_table": "study",
    "write_report": "report",
}

__all__ = [
    "Candidate",
    "Estimate",
    "Judged",
    "Measures",
    "Reference",
    "SeveralReferences",
    "TeacherReference",
    "evaluate_models",
    "exponential",
    "interval",
    "judge_answers",
    "measure",
    "paired_difference",
    "results_table",
    "sample_and_score",
    "study_page",
    "study_results",
    "study_table",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
