"""Teacher targets of a run: which teacher is assigned which documents, and all of them as one signal."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stillhouse.console import console
from stillhouse.pipeline.run_context import RunContext
from stillhouse.recipe.teachers import all_teachers, teacher_number, teacher_shares

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from stillhouse.distill import AlignedDocuments, ChatTokenizer, Document, TeacherSignal
    from stillhouse.models import ChatTemplate


@dataclass(frozen=True, eq=False)
class TeacherAssignment:
    """The documents of one teacher.

    Args:
        teacher: its number (:mod:`stillhouse.recipe.teachers`).
        weight: of its distributions, where a document has several teachers.
        indices: of its documents among all documents.
        documents: as the student reads them.
        teacher_documents: as the teacher reads them: the same, or longer ones with its private context.
        aligned: if it has another tokenizer, how its tokens align with the student's.
    """

    teacher: int
    weight: float
    indices: list[int]
    documents: list[Document]
    teacher_documents: list[Document]
    aligned: AlignedDocuments | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """The figures of the alignment for the report, as JSON values."""
        return {} if self.aligned is None else self.aligned.facts


def training_assignments(run: RunContext) -> list[TeacherAssignment]:
    """The teacher of each of the run's training documents."""
    return run.shared(_training_assignments)


def training_signal(run: RunContext) -> TeacherSignal:
    """The teachers' distributions over the run's training documents."""
    return run.shared(_training_signal)


def _training_assignments(run: RunContext) -> list[TeacherAssignment]:
    from stillhouse.models import load_tokenizer

    if run.objective.joins_tokenizers:
        return [_assign_across_tokenizers(run, run.training_documents)]
    return assign_teachers(run, "train", run.training_documents, *load_tokenizer(run.start))


def _training_signal(run: RunContext) -> TeacherSignal:
    return _open_signal(run, training_assignments(run))


def assign_teachers(
    run: RunContext,
    split: str,
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerFast,
    template: ChatTemplate,
    *,
    loss_on: Literal["assistant", "all"] | None = None,
) -> list[TeacherAssignment]:
    """Assigns ``documents``, made from ``split`` with this tokenizer and template, to their teachers."""
    from stillhouse.distill import make_teacher_documents

    by_teacher: dict[tuple[int, float], list[int]] = {}
    responsible = _responsible_teachers(run, split)
    for index, document in enumerate(documents):
        for share in teacher_shares(run.recipe, responsible[document.id]).items():
            by_teacher.setdefault(share, []).append(index)
    assignments = []
    for (number, weight), indices in sorted(by_teacher.items()):
        own = [documents[index] for index in indices]
        teacher_documents = own
        if run.contexts[number].private:
            teacher_documents = make_teacher_documents(
                own,
                run.learned.rows(split),
                run.contexts[number].for_teacher,
                tokenizer,
                template,
                loss_on=loss_on or run.objective.loss_on,
            )
        assignments.append(TeacherAssignment(number, weight, indices, own, teacher_documents))
    return assignments


def _assign_across_tokenizers(run: RunContext, documents: list[Document]) -> TeacherAssignment:
    """All of ``documents``, aligned with the teacher's own template and tokens."""
    from stillhouse.distill import align_documents

    teacher, student = _chat_tokenizers(run)
    with console.progress("aligning the teacher's tokens with the student's", None):
        aligned = align_documents(
            run.learned.rows("train"),
            documents,
            teacher=teacher,
            student=student,
            by=run.objective.align,
            teacher_view=run.contexts[0].for_teacher if run.contexts[0].private else None,
        )
    return TeacherAssignment(0, 1.0, list(range(len(documents))), documents, aligned.documents, aligned)


def _chat_tokenizers(run: RunContext) -> tuple[ChatTokenizer, ChatTokenizer]:
    """Teacher and student, each with its tokenizer and template."""
    from stillhouse.distill import ChatTokenizer
    from stillhouse.models import load_tokenizer

    return ChatTokenizer(run.teacher.tokenizer, run.teacher.template), ChatTokenizer(
        *load_tokenizer(run.start)
    )


def _responsible_teachers(run: RunContext, split: str) -> dict[str, int]:
    """The number of the responsible teacher of each exchange, by id."""
    rows = run.learned.rows(split, columns=["id", "split", "tags"])
    return {str(row["id"]): teacher_number(run.recipe, json.loads(row["tags"] or "{}")) for row in rows}


def target_directory(run: RunContext, number: int) -> Path:
    """The directory with a teacher's cached targets."""
    return run.directory / "targets" / (str(number) if run.recipe.teachers else "")


def _shared_vocabulary(run: RunContext) -> int:
    """The number of ids that the student and all teachers have (padding included)."""
    from stillhouse.distill import lm_head_of
    from stillhouse.models import describe

    student = describe(run.start).vocab_size
    teachers = [run.weights_of(number).model for number in range(len(all_teachers(run.recipe)))]
    sizes = [lm_head_of(model).vocab_size for model in teachers]
    return min([*sizes, student] if student is not None else sizes)


def cache_teacher_targets(run: RunContext, assignments: Sequence[TeacherAssignment]) -> None:
    """Writes each teacher's targets for its documents to its target directory."""
    from stillhouse.distill import cache_targets

    vocab_size = _shared_vocabulary(run)
    for assignment in assignments:
        cache_targets(
            run.weights_of(assignment.teacher).model,
            assignment.teacher_documents,
            run.objective,
            target_directory(run, assignment.teacher),
            seed=run.recipe.seed,
            dtype=run.recipe.train.dtype,
            vocab_size=vocab_size,
        )


def _open_signal(run: RunContext, assignments: Sequence[TeacherAssignment]) -> TeacherSignal:
    """All teachers' targets as one signal over the student's documents."""
    from stillhouse.distill import (
        EnsembleMember,
        EnsembleSignal,
        PrivateContextSignal,
        SpanSignal,
        join_vocabularies,
        open_targets,
    )

    members = []
    for assignment in assignments:
        signal = open_targets(
            target_directory(run, assignment.teacher),
            assignment.teacher_documents,
            run.objective,
            teacher=run.weights_of(assignment.teacher).model,
            dtype=run.recipe.train.dtype,
        )
        if assignment.aligned is not None:
            teacher, student = _chat_tokenizers(run)
            ends = teacher.end_id(), student.end_id()
            vocabulary = join_vocabularies(teacher.tokenizer, student.tokenizer, ends)
            signal = SpanSignal(signal, assignment.aligned, vocabulary)
        elif assignment.teacher_documents is not assignment.documents:
            signal = PrivateContextSignal(signal, assignment.documents, assignment.teacher_documents)
        members.append(EnsembleMember(signal, assignment.indices, assignment.weight))
    if not run.recipe.teachers:
        return members[0].signal
    return EnsembleSignal(members, _shared_vocabulary(run))
