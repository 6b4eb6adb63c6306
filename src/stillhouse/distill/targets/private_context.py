"""What a teacher reads where it is not what the student reads: the same answers after a longer text.

For a teacher with a context of its own (context distillation). The k-th counted token of its document
is the k-th of the student's, so its rows serve the student's positions: only where they stand differs.

Shapes: T tokens of a text, N counted tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from stillhouse.distill.data.documents import Document
from stillhouse.distill.loss.cross_tokenizer import SpanRows
from stillhouse.distill.loss.teacher_rows import TeacherRows
from stillhouse.errors import TokenizerMismatchError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from stillhouse.distill.targets.signal import Positions, TeacherSignal
    from stillhouse.models import ChatTemplate, Message


def make_teacher_documents(
    documents: Sequence[Document],
    rows: Iterable[Mapping[str, Any]],
    shown: Callable[[list[Message]], list[Message]],
    tokenizer: PreTrainedTokenizerFast,
    template: ChatTemplate,
    *,
    loss_on: Literal["assistant", "all"],
) -> list[Document]:
    """The documents that the teacher reads for the student's ``documents``, one each, in the same order.

    Each has the counted tokens of the student's, in their order, and ends with the last of them; it may be
    longer than the recipe's ``max_length``, by what the teacher is shown.

    Args:
        documents: made from ``rows`` with this tokenizer and template (:func:`.documents.make_documents`).
        rows: in the documents' order; rows that became no document are passed over.
        shown: the conversation as the teacher reads it.

    Raises:
        TokenizerMismatchError: after what the teacher is shown, the counted tokens are not those of the
            student.
    """
    made: list[Document] = []
    for row in rows:
        if len(made) == len(documents) or str(row["id"]) != documents[len(made)].id:
            continue
        document = documents[len(made)]
        messages = [{k: v for k, v in message.items() if v is not None} for message in row["messages"]]
        own_T = np.asarray(template.encode(tokenizer, messages)[1]) | (loss_on == "all")
        ids, marks = template.encode(tokenizer, shown(messages))
        marks_T = np.asarray(marks) | (loss_on == "all")
        counted = _counted(own_T)
        longer = _counted(marks_T)[-len(counted) :]  # examples have counted tokens too
        kept = longer[: document.counted]
        begins = marks_T[longer[0] - 1] == own_T[counted[0] - 1]  # not in the middle of a longer answer
        if not begins or not np.array_equal(np.asarray(ids, dtype=np.int32)[kept], document.labels):
            raise TokenizerMismatchError(
                f"exchange {document.id}: the chat template writes the tokens to learn differently after the "
                "teacher's own context, so its distributions cannot be matched to the student's tokens",
                hint="Use objective.loss_on: assistant, another student.template or teacher.context: shared.",
            )
        loss = np.zeros(kept[-1] + 1, dtype=bool)
        loss[kept] = True
        made.append(Document(document.id, np.asarray(ids[: len(loss)], dtype=np.int32), loss))
    assert len(made) == len(documents), "rows are those that the documents were made from"
    return made


def _counted(marks_T: np.ndarray) -> np.ndarray:
    """Places of the counted tokens, ascending, int64 [N]; the first token of a text is never one."""
    return 1 + np.flatnonzero(marks_T[1:])


class PrivateContextSignal:
    """A teacher's rows over its own documents, asked for by positions in the student's."""

    def __init__(
        self, signal: TeacherSignal, documents: Sequence[Document], read: Sequence[Document]
    ) -> None:
        """``read`` are the teacher's documents, which ``signal`` is over."""
        assert [d.counted for d in documents] == [d.counted for d in read]
        self.kind = signal.kind
        self._signal, self._documents, self._read = signal, documents, read

    def rows(self, parts: Sequence[Positions], device: torch.device) -> TeacherRows:
        rows = self._signal.rows([(index, self._there(index, places)) for index, places in parts], device)
        assert not isinstance(rows, SpanRows), "its rows are at the student's tokens"
        return rows

    def _there(self, index: int, positions: np.ndarray) -> np.ndarray:
        return self._read[index].predicting[np.searchsorted(self._documents[index].predicting, positions)]
