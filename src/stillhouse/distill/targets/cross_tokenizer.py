"""What a teacher says that reads its own tokens: cached or asked like any other, with the spans beside it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from stillhouse.distill.data.cross_tokenizer import AlignedDocuments
from stillhouse.distill.loss.cross_tokenizer import SpanRows
from stillhouse.distill.loss.shared_vocabulary import SharedVocabulary
from stillhouse.distill.loss.teacher_rows import DenseRows
from stillhouse.distill.targets.signal import Positions, TeacherSignal


class SpanSignal:
    """Rows over the teacher's own documents, for a student that reads other tokens.

    Args:
        signal: the teacher's hidden states over ``aligned.documents``, cached or online.
        aligned: the teacher's documents and the spans.
        vocabulary: what the tokens of either side count for.
    """

    def __init__(
        self, signal: TeacherSignal, aligned: AlignedDocuments, vocabulary: SharedVocabulary
    ) -> None:
        assert signal.kind in ("hidden", "online"), "spans need the teacher's whole distribution"
        self.kind = signal.kind
        self._signal, self._aligned, self._vocabulary = signal, aligned, vocabulary

    def rows(self, parts: Sequence[Positions], device: torch.device) -> SpanRows:
        """The teacher's rows and the spans of a batch; ``parts`` must name whole documents of the student."""
        indices = [index for index, _ in parts]
        read = [self._aligned.documents[index] for index in indices]
        teacher = self._signal.rows(
            [(i, document.predicting) for i, document in zip(indices, read, strict=True)], device
        )
        assert isinstance(teacher, DenseRows)
        labels = np.concatenate([document.labels for document in read]).astype(np.int64)
        shifted, teacher_rows, student_rows = [], 0, 0
        for index, positions in parts:
            shifted.append(self._aligned.spans_S4[index] + [teacher_rows, 0, student_rows, 0])
            teacher_rows += self._aligned.documents[index].counted
            student_rows += len(positions)
        return SpanRows(
            teacher,
            torch.from_numpy(labels).to(device),
            torch.from_numpy(np.concatenate(shifted)),
            self._vocabulary,
        )
