"""Who teaches which documents: what each teacher reads, its cached targets, and all of them as one signal."""

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
    """The documents that one teacher has a say in.

    Args:
        teacher: its number (:mod:`stillhouse.recipe.teachers`).
        weight: its share of their distributions.
        indices: which documents of the whole they are.
        documents: as the student reads them.
        read: as the teacher does: the same, or longer ones where it has a context of its own.
        aligned: where it reads tokens of its own: what they have to do with the student's.
    """

    teacher: int
    weight: float
    indices: list[int]
    documents: list[Document]
    read: list[Document]
    aligned: AlignedDocuments | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """What the report says of it, as JSON values."""
        return {} if self.aligned is None else self.aligned.facts


def lessons(
    run: RunContext,
    split: str,
    documents: Sequence[Document],
    tokenizer: PreTrainedTokenizerFast,
    template: ChatTemplate,
    *,
    loss_on: Literal["assistant", "all"] | None = None,
) -> list[TeacherAssignment]:
    """Each teacher's part of ``documents``, made from ``split`` with this tokenizer and template."""
    from stillhouse.distill import make_teacher_documents

    by_teacher: dict[tuple[int, float], list[int]] = {}
    owners = _owners(run, split)
    for index, document in enumerate(documents):
        for share in teacher_shares(run.recipe, owners[document.id]).items():
            by_teacher.setdefault(share, []).append(index)
    found = []
    for (number, weight), indices in sorted(by_teacher.items()):
        own = [documents[index] for index in indices]
        read = own
        if run.contexts[number].private:
            read = make_teacher_documents(
                own,
                run.learned.rows(split),
                run.contexts[number].for_teacher,
                tokenizer,
                template,
                loss_on=loss_on or run.objective.loss_on,
            )
        found.append(TeacherAssignment(number, weight, indices, own, read))
    return found


def assign_across_tokenizers(run: RunContext, documents: list[Document]) -> TeacherAssignment:
    """All of ``documents`` for a teacher that reads them in its own template and tokens."""
    from stillhouse.distill import align_documents

    teacher, student = _readers(run)
    with console.progress("aligning the teacher's tokens with the student's", None):
        aligned = align_documents(
            run.learned.rows("train"),
            documents,
            teacher=teacher,
            student=student,
            by=run.objective.align,
            shown=run.contexts[0].for_teacher if run.contexts[0].private else None,
        )
    return TeacherAssignment(0, 1.0, list(range(len(documents))), documents, aligned.documents, aligned)


def _readers(run: RunContext) -> tuple[ChatTokenizer, ChatTokenizer]:
    """Teacher and student, each with its tokenizer and template."""
    from stillhouse.distill import ChatTokenizer
    from stillhouse.models import load_tokenizer

    return ChatTokenizer(run.teacher.tokenizer, run.teacher.template), ChatTokenizer(
        *load_tokenizer(run.start)
    )


def _owners(run: RunContext, split: str) -> dict[str, int]:
    """The responsible teacher of each exchange, by id."""
    rows = run.learned.rows(split, columns=["id", "split", "tags"])
    return {str(row["id"]): teacher_number(run.recipe, json.loads(row["tags"] or "{}")) for row in rows}


def target_directory(run: RunContext, number: int) -> Path:
    """Where the targets of a teacher are cached."""
    return run.directory / "targets" / (str(number) if run.recipe.teachers else "")


def shared_vocabulary(run: RunContext) -> int:
    """The ids that the student and all teachers have (padding included)."""
    from stillhouse.distill import lm_head_of
    from stillhouse.models import describe

    student = describe(run.start).vocab_size
    teachers = [run.weights_of(number).model for number in range(len(all_teachers(run.recipe)))]
    sizes = [lm_head_of(model).vocab_size for model in teachers]
    return min([*sizes, student] if student is not None else sizes)


def cache_teacher_targets(run: RunContext, found: Sequence[TeacherAssignment]) -> None:
    """Caches what each teacher thinks of its documents."""
    from stillhouse.distill import cache_targets

    vocab_size = shared_vocabulary(run)
    for lesson in found:
        cache_targets(
            run.weights_of(lesson.teacher).model,
            lesson.read,
            run.objective,
            target_directory(run, lesson.teacher),
            seed=run.recipe.seed,
            dtype=run.recipe.train.dtype,
            vocab_size=vocab_size,
        )


def open_teacher_signal(run: RunContext, found: Sequence[TeacherAssignment]) -> TeacherSignal:
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
    for lesson in found:
        signal = open_targets(
            target_directory(run, lesson.teacher),
            lesson.read,
            run.objective,
            teacher=run.weights_of(lesson.teacher).model,
            dtype=run.recipe.train.dtype,
        )
        if lesson.aligned is not None:
            teacher, student = _readers(run)
            ends = teacher.end_id(), student.end_id()
            vocabulary = join_vocabularies(teacher.tokenizer, student.tokenizer, ends)
            signal = SpanSignal(signal, lesson.aligned, vocabulary)
        elif lesson.read is not lesson.documents:
            signal = PrivateContextSignal(signal, lesson.documents, lesson.read)
        members.append(EnsembleMember(signal, lesson.indices, lesson.weight))
    if not run.recipe.teachers:
        return members[0].signal
    return EnsembleSignal(members, shared_vocabulary(run))
