"""The reference of several teachers: each document's own teacher, or the average of several.

Shapes: N counted tokens of a document, V vocabulary.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from stillhouse.evaluate.measures import Measures, ReferenceModel, own_measures

if TYPE_CHECKING:
    from stillhouse.distill import Document


class EnsembleReference:
    """The references of several teachers, each over some of the documents, as one reference.

    Args:
        documents: all documents.
        members: each member's reference, the numbers of its documents in order, and its weight there; at each
            document the weights sum to 1.
    """

    def __init__(
        self, documents: Sequence[Document], members: Sequence[tuple[ReferenceModel, Sequence[int], float]]
    ) -> None:
        self.documents: Sequence[Document] = list(documents)
        self.vocab_size = min(reference.vocab_size for reference, _, _ in members)
        self._members_of: list[list[tuple[ReferenceModel, int, float]]] = [[] for _ in documents]
        for reference, indices, weight in members:
            for own_index, index in enumerate(indices):
                self._members_of[index].append((reference, own_index, weight))

    def logp(self, index: int, positions: slice, vocab: int) -> Tensor:
        """Log-probabilities of the weighted mean of the distributions, float32 [N, V]."""
        weighted = [
            reference.logp(own_index, positions, vocab).cpu() + math.log(weight)
            for reference, own_index, weight in self._members_of[index]
        ]
        return torch.stack(weighted).logsumexp(dim=0)

    def measures(self) -> Measures:
        return own_measures(self)
