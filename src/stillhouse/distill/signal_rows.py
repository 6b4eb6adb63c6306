"""What the teacher said at a batch of positions, in the form it was kept in.

Three forms: hidden states with the teacher's head (dense and exact), the k likeliest ids
and one tail, or drawn ids with counts. :mod:`stillhouse.distill.head_loss` turns each
into a loss; nothing here reads a file.

Shapes: N rows (positions), D the teacher's hidden size, V vocabulary, K listed ids.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from .divergences import soften
from .head import Head


@dataclass(frozen=True, eq=False)
class DenseRows:
    """The whole distribution, as the hidden states it is made from.

    Args:
        hidden_ND: the teacher's last hidden states, after its final norm, in the dtype it ran in.
        head: the teacher's, in the same dtype.
    """

    hidden_ND: Tensor
    head: Head

    def __len__(self) -> int:
        return len(self.hidden_ND)

    @property
    def vocab_size(self) -> int:
        return self.head.vocab_size

    def dense_logp(self, vocab_size: int) -> Tensor:
        """Log-probabilities over the first ``vocab_size`` ids, normalised over them, float32 [N, V]."""
        return soften(self.head.logits(self.hidden_ND, vocab_size), 1.0)


@dataclass(frozen=True, eq=False)
class TopKRows:
    """The likeliest ids, and what is left as one tail.

    Args:
        ids_NK: int64, distinct in a row.
        logp_NK1: float32, at the objective's temperature; the tail's is last. They sum to 1.
        vocab_size: how many ids the tail and the listed ids are taken from.
    """

    ids_NK: Tensor
    logp_NK1: Tensor
    vocab_size: int

    def __len__(self) -> int:
        return len(self.ids_NK)


@dataclass(frozen=True, eq=False)
class SampledRows:
    """Ids drawn from the teacher at the objective's temperature.

    Args:
        ids_NK: int64; K is the most distinct ids that any row has.
        counts_NK: float32; 0 where a row has fewer.
        vocab_size: how many ids were drawn from.
    """

    ids_NK: Tensor
    counts_NK: Tensor
    vocab_size: int

    def __len__(self) -> int:
        return len(self.ids_NK)


SignalRows = DenseRows | TopKRows | SampledRows
