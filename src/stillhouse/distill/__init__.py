"""How knowledge moves: documents, targets, divergences, students, the training loop.

The front door: names are imported when first used, so that importing the room costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .divergences import divergence, needs_teacher
    from .documents import Document, documents_hash, make_documents
    from .forward_pass import ForwardPass
    from .head import Head, head_of
    from .lora import prepare_lora
    from .on_policy import OffPolicy, train_on_policy
    from .precision import compute_dtype
    from .rollouts import Question, Reading, Score
    from .runtime import choose_device
    from .saving import save_student
    from .several import Member, SeveralTeachers
    from .signal_rows import SignalRows
    from .students import Built, build_student, require_same_tokenizer
    from .targets import TeacherSignal, cache_targets, open_targets
    from .teacher_documents import AlignedSignal, make_teacher_documents
    from .training import TrainResult, train

_HOME = {
    "AlignedSignal": "teacher_documents",
    "choose_device": "runtime",
    "compute_dtype": "precision",
    "divergence": "divergences",
    "Document": "documents",
    "documents_hash": "documents",
    "make_documents": "documents",
    "make_teacher_documents": "teacher_documents",
    "needs_teacher": "divergences",
    "ForwardPass": "forward_pass",
    "Head": "head",
    "OffPolicy": "on_policy",
    "Question": "rollouts",
    "Reading": "rollouts",
    "Member": "several",
    "SeveralTeachers": "several",
    "Score": "rollouts",
    "head_of": "head",
    "Built": "students",
    "build_student": "students",
    "prepare_lora": "lora",
    "require_same_tokenizer": "students",
    "save_student": "saving",
    "SignalRows": "signal_rows",
    "TeacherSignal": "targets",
    "cache_targets": "targets",
    "open_targets": "targets",
    "train_on_policy": "on_policy",
    "TrainResult": "training",
    "train": "training",
}

__all__ = [
    "AlignedSignal",
    "Built",
    "Document",
    "ForwardPass",
    "Head",
    "Member",
    "OffPolicy",
    "Question",
    "Reading",
    "Score",
    "SeveralTeachers",
    "SignalRows",
    "TeacherSignal",
    "TrainResult",
    "build_student",
    "cache_targets",
    "choose_device",
    "compute_dtype",
    "divergence",
    "documents_hash",
    "head_of",
    "make_documents",
    "make_teacher_documents",
    "needs_teacher",
    "open_targets",
    "prepare_lora",
    "require_same_tokenizer",
    "save_student",
    "train",
    "train_on_policy",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
