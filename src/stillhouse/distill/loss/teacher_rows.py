"""The teacher's distributions for a batch of positions, in the form in which they were stored.

Three forms: hidden states with the teacher's LM head (dense and exact; of several teachers: mixed), the k
likeliest ids and one tail, or drawn ids with counts. :mod:`stillhouse.distill.loss.fused_loss` turns each
into a loss; nothing here reads a file.

Shapes: N rows (positions), D the teacher's hidden size, V vocabulary, K listed ids, C rows of a chunk, n rows
of one of several teachers, c those of them in a chunk.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from stillhouse.distill.loss.lm_head import LMHead
from stillhouse.distill.loss.logit_losses import soften


@dataclass(frozen=True, eq=False)
class DenseRows:
    """The whole distribution, as the hidden states that it is computed from.

    Args:
        hidden_ND: the teacher's last hidden states, after its final norm, in its compute dtype.
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
        """Input of :meth:`finish_logits` for the first ``vocab_size`` ids, in the compute dtype, [C, V]."""
        return self.head.raw_logits(self.hidden_ND[rows], vocab_size)

    def finish_logits(self, raw_NV: Tensor) -> Tensor:
        """The logits, from :meth:`raw_logits` in float32 at least."""
        return self.head.finish_logits(raw_NV)


@dataclass(frozen=True, eq=False)
class MixtureComponent:
    """One teacher's distributions for some of the rows of a mixture.

    Args:
        rows: of this teacher, n of them.
        indices_n: their row numbers in the mixture, int64, ascending.
        weight: of this teacher in those rows, above 0.
    """

    rows: DenseRows
    indices_n: Tensor
    weight: float


@dataclass(frozen=True, eq=False)
class MixedRows:
    """Whole distributions of several teachers: each row is the weighted mean of the teachers that have it.

    P = Σ_i w_i softmax(z_i), with Σ_i w_i = 1 at every row; the objective's temperature is applied to log P.

    Args:
        components: one for each teacher that has any of the rows.
        count: N.
        vocab_size: the ids that all teachers have.
    """

    components: tuple[MixtureComponent, ...]
    count: int
    vocab_size: int

    def __len__(self) -> int:
        return self.count

    def raw_logits(self, rows: slice, vocab_size: int) -> Tensor:
        """Log-probabilities over the first ``vocab_size`` ids, in float32 at least, [C, V]."""
        mixed_CV = None
        for component in self.components:
            teacher, indices_n = component.rows, component.indices_n
            inside_n = ((indices_n >= rows.start) & (indices_n < rows.stop)).nonzero()[:, 0]
            logp_cV = soften(teacher.head.logits(teacher.hidden_ND[inside_n], vocab_size), 1.0)
            if mixed_CV is None:
                mixed_CV = logp_cV.new_full((rows.stop - rows.start, vocab_size), -math.inf)
            offsets_c = indices_n[inside_n] - rows.start
            # Summed as logarithms, so that an id that every teacher finds unlikely keeps its digits.
            weighted_cV = logp_cV.to(mixed_CV) + math.log(component.weight)
            mixed_CV[offsets_c] = mixed_CV[offsets_c].logaddexp(weighted_cV)
        assert mixed_CV is not None
        return mixed_CV

    def finish_logits(self, raw_NV: Tensor) -> Tensor:
        """Returns its argument: log-probabilities are logits."""
        return raw_NV


@dataclass(frozen=True, eq=False)
class TopKRows:
    """The likeliest ids, and all others as one tail.

    Args:
        ids_NK: int64, distinct in a row.
        logp_NK1: float32, at the objective's temperature; the tail's is last. The probabilities sum to 1.
        vocab_size: the number of ids that the list and the tail cover.
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
        ids_NK: int64; K is the largest number of distinct ids in a row.
        counts_NK: float32; 0 where a row has fewer.
        vocab_size: the number of ids that could be drawn.
    """

    ids_NK: Tensor
    counts_NK: Tensor
    vocab_size: int

    def __len__(self) -> int:
        return len(self.ids_NK)


TeacherRows = DenseRows | MixedRows | TopKRows | SampledRows
