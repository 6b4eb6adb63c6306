"""Targets of a teacher with another tokenizer: rows over its own tokens, with the spans that align them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from stillhouse.distill.data.token_alignment import AlignedDocuments
from stillhouse.distill.loss.cross_tokenizer import SpanRows
from stillhouse.distill.loss.shared_vocabulary import SharedVocabulary
from stillhouse.distill.loss.teacher_rows import DenseRows
from stillhouse.distill.targets.teacher_signal import DocumentPositions, TeacherSignal


class SpanSignal:
    """Rows over the teacher's own documents, for a student with another tokenizer.

    Args:
        signal: the teacher's hidden states over ``aligned.documents``, cached or online.
        aligned: the teacher's documents and the spans.
        vocabulary: the shared token of each id of either side.
    """

    def __init__(
        self, signal: TeacherSignal, aligned: AlignedDocuments, vocabulary: SharedVocabulary
    ) -> None:
        assert signal.kind in ("hidden", "online"), "spans need the teacher's whole distribution"
        self.kind = signal.kind
        self._signal, self._aligned, self._vocabulary = signal, aligned, vocabulary

    def rows(self, requests: Sequence[DocumentPositions], device: torch.device) -> SpanRows:
        """The teacher's rows and the spans of a batch; ``requests`` name whole documents of the student."""
        indices = [index for index, _ in requests]
        documents = [self._aligned.documents[index] for index in indices]
        teacher = self._signal.rows(
            [(i, document.predicting) for i, document in zip(indices, documents, strict=True)], device
        )
        assert isinstance(teacher, DenseRows)
        labels = np.concatenate([document.labels for document in documents]).astype(np.int64)
        # Spans count rows from the start of their document; here they count from the start of the batch.
        shifted, teacher_rows, student_rows = [], 0, 0
        for index, positions in requests:
            shifted.append(self._aligned.spans_S4[index] + [teacher_rows, 0, student_rows, 0])
            teacher_rows += self._aligned.documents[index].counted
            student_rows += len(positions)
        return SpanRows(
            teacher,
            torch.from_numpy(labels).to(device),
            torch.from_numpy(np.concatenate(shifted)),
            self._vocabulary,
        )
