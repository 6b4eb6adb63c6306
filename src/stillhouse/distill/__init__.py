"""How knowledge moves: documents, targets, divergences, students, the training loop.

The front door: names are imported when first used, so that importing the room costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stillhouse.distill.alignment import Aligned, Reader, align_documents
    from stillhouse.distill.divergences import divergence, needs_teacher
    from stillhouse.distill.documents import Document, documents_hash, make_documents
    from stillhouse.distill.forward_pass import ForwardPass
    from stillhouse.distill.head import Head, head_of
    from stillhouse.distill.lora import prepare_lora
    from stillhouse.distill.on_policy import OffPolicy, train_on_policy
    from stillhouse.distill.precision import compute_dtype
    from stillhouse.distill.rollouts import Question, Reading, Score
    from stillhouse.distill.runtime import choose_device
    from stillhouse.distill.saving import save_student
    from stillhouse.distill.several import Member, SeveralTeachers
    from stillhouse.distill.shared_vocabulary import SharedVocabulary, join_vocabularies
    from stillhouse.distill.signal_rows import SignalRows
    from stillhouse.distill.span_signal import SpanSignal
    from stillhouse.distill.students import Built, build_student, require_same_tokenizer
    from stillhouse.distill.targets import TeacherSignal, cache_targets, open_targets
    from stillhouse.distill.teacher_documents import AlignedSignal, make_teacher_documents
    from stillhouse.distill.training import TrainResult, train

_HOME = {
    "Aligned": "alignment",
    "AlignedSignal": "teacher_documents",
    "SpanSignal": "span_signal",
    "Reader": "alignment",
    "SharedVocabulary": "shared_vocabulary",
    "align_documents": "alignment",
    "join_vocabularies": "shared_vocabulary",
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
    "Aligned",
    "AlignedSignal",
    "Built",
    "Document",
    "ForwardPass",
    "Head",
    "Member",
    "OffPolicy",
    "Question",
    "Reader",
    "Reading",
    "Score",
    "SeveralTeachers",
    "SharedVocabulary",
    "SignalRows",
    "SpanSignal",
    "TeacherSignal",
    "TrainResult",
    "align_documents",
    "build_student",
    "cache_targets",
    "choose_device",
    "compute_dtype",
    "divergence",
    "documents_hash",
    "head_of",
    "join_vocabularies",
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
