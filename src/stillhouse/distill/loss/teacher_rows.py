"""What the teacher said at a batch of positions, in the form it was kept in.

Three forms: hidden states with the teacher's head (dense and exact; of several teachers:
mixed), the k likeliest ids and one tail, or drawn ids with counts.
:mod:`stillhouse.distill.loss.fused_loss` turns each into a loss; nothing here reads a file.

Shapes: N rows (positions), D the teacher's hidden size, V vocabulary, K listed ids, C rows of a
chunk, n rows of one of several teachers, c those of them in a chunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from stillhouse.distill.loss.divergences import soften
from stillhouse.distill.loss.lm_head import LMHead


@dataclass(frozen=True, eq=False)
class DenseRows:
    """The whole distribution, as the hidden states it is made from.

    Args:
        hidden_ND: the teacher's last hidden states, after its final norm, in the dtype it ran in.
        head: the teacher's, in the same dtype.
    """

    hidden_ND: Tensor
    head: LMHead

    def __len__(self) -> int:
        return len(self.hidden_ND)

    @property
    def vocab_size(self) -> int:
        return self.head.vocab_size

    def raw_logits(self, rows: slice, vocab_size: int) -> Tensor:
        """Input of :meth:`finish_logits` for the first ``vocab_size`` ids, in the pass's dtype, [C, V]."""
        return self.head.raw_logits(self.hidden_ND[rows], vocab_size)

    def finish_logits(self, raw_NV: Tensor) -> Tensor:
        """The logits, from :meth:`raw_logits` in float32 at least."""
        return self.head.finish_logits(raw_NV)

    def dense_logp(self, vocab_size: int) -> Tensor:
        """Log-probabilities over the first ``vocab_size`` ids, normalised over them, float32 [N, V]."""
        return soften(self.head.logits(self.hidden_ND, vocab_size), 1.0)


@dataclass(frozen=True, eq=False)
class MixtureComponent:
    """What one of several teachers said of some of the rows.

    Args:
        rows: of this teacher, n of them.
        where_n: which rows of the whole they are, int64, ascending.
        weight: of this teacher in those rows, above 0.
    """

    rows: DenseRows
    where_n: Tensor
    weight: float


@dataclass(frozen=True, eq=False)
class MixedRows:
    """Whole distributions of several teachers: each row the weighted mean of those that speak there.

    P = Σ_i w_i softmax(z_i), with Σ_i w_i = 1 at every row; the objective's temperature is applied to log P.

    Args:
        shares: one for each teacher that speaks anywhere.
        count: N.
        vocab_size: the ids that all of the teachers have.
    """

    shares: tuple[MixtureComponent, ...]
    count: int
    vocab_size: int

    def __len__(self) -> int:
        return self.count

    def raw_logits(self, rows: slice, vocab_size: int) -> Tensor:
        """Log-probabilities over the first ``vocab_size`` ids, in float32 at least, [C, V]."""
        mixed_CV = None
        for share in self.shares:
            inside_n = ((share.where_n >= rows.start) & (share.where_n < rows.stop)).nonzero()[:, 0]
            logp_cV = soften(share.rows.head.logits(share.rows.hidden_ND[inside_n], vocab_size), 1.0)
            if mixed_CV is None:
                mixed_CV = logp_cV.new_full((rows.stop - rows.start, vocab_size), -math.inf)
            there_c = share.where_n[inside_n] - rows.start
            mixed_CV[there_c] = mixed_CV[there_c].logaddexp(logp_cV.to(mixed_CV) + math.log(share.weight))
        assert mixed_CV is not None
        return mixed_CV

    def finish_logits(self, raw_NV: Tensor) -> Tensor:
        """Itself: a log-probability is a logit."""
        return raw_NV


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


TeacherRows = DenseRows | MixedRows | TopKRows | SampledRows
