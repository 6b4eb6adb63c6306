"""Context distillation: the teacher reads the same answers as the student, after a context of its own.

The k-th counted token of the teacher's document is the k-th of the student's, so the teacher's rows serve the
student's positions; only their offsets differ.

Shapes: T tokens of a text, N counted tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from stillhouse.distill.data.documents import Document, encode_for_training, messages_of
from stillhouse.distill.loss.cross_tokenizer import SpanRows
from stillhouse.distill.loss.teacher_rows import TeacherRows
from stillhouse.errors import TokenizerMismatchError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from stillhouse.distill.targets.teacher_signal import DocumentPositions, TeacherSignal
    from stillhouse.models import ChatTemplate, Message


def make_teacher_documents(
    documents: Sequence[Document],
    rows: Iterable[Mapping[str, Any]],
    teacher_view: Callable[[list[Message]], list[Message]],
    tokenizer: PreTrainedTokenizerFast,
    template: ChatTemplate,
    *,
    loss_on: Literal["assistant", "all"],
) -> list[Document]:
    """Makes the teacher's document for each of the student's ``documents``, in the same order.

    Each has the student's counted tokens, in their order, and ends with the last of them. With the teacher's
    context it may be longer than the recipe's ``max_length``.

    Args:
        documents: made from ``rows`` with this tokenizer and template (:func:`.documents.make_documents`).
        rows: in the documents' order; rows without a document are skipped.
        teacher_view: returns the conversation as the teacher reads it.

    Raises:
        TokenizerMismatchError: after the teacher's context, the counted tokens differ from the student's.
    """
    teacher_documents: list[Document] = []
    for row in rows:
        done = len(teacher_documents)
        if done == len(documents) or str(row["id"]) != documents[done].id:
            continue
        messages = messages_of(row)
        _, student_T = encode_for_training(
            messages, tokenizer, template, loss_on=loss_on, tools=row.get("tools")
        )
        ids, teacher_T = encode_for_training(
            teacher_view(messages), tokenizer, template, loss_on=loss_on, tools=row.get("tools")
        )
        teacher_documents.append(_teacher_document(documents[done], student_T, ids, teacher_T))
    assert len(teacher_documents) == len(documents), "rows are those that the documents were made from"
    return teacher_documents


def _teacher_document(
    document: Document, student_T: np.ndarray, ids: Sequence[int], teacher_T: np.ndarray
) -> Document:
    """The teacher's document, from its token ids and from both sides' masks of the tokens that count."""
    student_counted = _counted(student_T)
    # The last ones: examples in the teacher's context are answers with counted tokens too.
    teacher_counted = _counted(teacher_T)[-len(student_counted) :]
    kept = teacher_counted[: document.counted]
    # Both begin an answer, or neither does: otherwise the match is in the middle of a longer answer.
    same_start = teacher_T[teacher_counted[0] - 1] == student_T[student_counted[0] - 1]
    if not same_start or not np.array_equal(np.asarray(ids, dtype=np.int32)[kept], document.labels):
        raise TokenizerMismatchError(
            f"exchange {document.id}: the chat template writes the tokens to learn differently after the "
            "teacher's own context, so its distributions cannot be matched to the student's tokens",
            hint="Use objective.loss_on: assistant, another student.template or teacher.context: shared.",
        )
    loss = np.zeros(kept[-1] + 1, dtype=bool)
    loss[kept] = True
    return Document(document.id, np.asarray(ids[: len(loss)], dtype=np.int32), loss)


def _counted(marks_T: np.ndarray) -> np.ndarray:
    """Positions of the counted tokens, ascending, int64 [N]; the first token of a text never counts."""
    return 1 + np.flatnonzero(marks_T[1:])


class PrivateContextSignal:
    """A teacher's rows over its own documents, requested by positions in the student's documents.

    Args:
        signal: over ``teacher_documents``.
        documents: the student's.
        teacher_documents: from :func:`make_teacher_documents`.
    """

    def __init__(
        self, signal: TeacherSignal, documents: Sequence[Document], teacher_documents: Sequence[Document]
    ) -> None:
        assert [d.counted for d in documents] == [d.counted for d in teacher_documents]
        self.kind = signal.kind
        self._signal, self._documents, self._teacher_documents = signal, documents, teacher_documents

    def rows(self, requests: Sequence[DocumentPositions], device: torch.device) -> TeacherRows:
        rows = self._signal.rows(
            [(index, self._teacher_positions(index, positions)) for index, positions in requests], device
        )
        assert not isinstance(rows, SpanRows), "a private context needs the student's tokenizer"
        return rows

    def _teacher_positions(self, index: int, positions: np.ndarray) -> np.ndarray:
        numbers = np.searchsorted(self._documents[index].predicting, positions)
        return self._teacher_documents[index].predicting[numbers]
