"""Several teachers as what students are held against: each document's own, or their average.

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
    """References of several teachers, each over some of the documents.

    Args:
        documents: all of them.
        members: a reference, which of the documents (in order) it is over, and its weight there; at each
            document the weights sum to 1.
    """

    def __init__(
        self, documents: Sequence[Document], members: Sequence[tuple[ReferenceModel, Sequence[int], float]]
    ) -> None:
        self.documents: Sequence[Document] = list(documents)
        self.vocab_size = min(reference.vocab_size for reference, _, _ in members)
        self._speakers: list[list[tuple[ReferenceModel, int, float]]] = [[] for _ in documents]
        for reference, indices, weight in members:
            for place, index in enumerate(indices):
                self._speakers[index].append((reference, place, weight))

    def logp(self, index: int, positions: slice, vocab: int) -> Tensor:
        """Of the weighted mean of the distributions, float32 [N, V]."""
        said = [
            reference.logp(place, positions, vocab).cpu() + math.log(weight)
            for reference, place, weight in self._speakers[index]
        ]
        return torch.stack(said).logsumexp(dim=0)

    def measures(self) -> Measures:
        return own_measures(self)
