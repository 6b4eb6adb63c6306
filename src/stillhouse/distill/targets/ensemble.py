"""Several teachers as one source of targets: each document has one teacher, or the average of several.

The average is the mixture of their distributions, Σ_i w_i P_i. A student that approaches it in forward KL
approaches each of them: Σ_i w_i KL(P_i‖Q) = KL(Σ_i w_i P_i‖Q) + a term without Q.

Shapes: N rows of a batch, n those of one teacher, K listed ids.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from stillhouse.distill.loss.cross_tokenizer import SpanRows
from stillhouse.distill.loss.teacher_rows import (
    DenseRows,
    MixedRows,
    MixtureComponent,
    SampledRows,
    TeacherRows,
    TopKRows,
)

if TYPE_CHECKING:
    from stillhouse.distill.targets.teacher_signal import DocumentPositions, TeacherSignal


@dataclass(frozen=True, eq=False)
class EnsembleMember:
    """One of several teachers.

    Args:
        signal: its targets, over the documents that it reads.
        indices: the numbers of those documents in the full list, in order.
        weight: its share of the distributions; at each document the shares of all members sum to 1.
    """

    signal: TeacherSignal
    indices: Sequence[int]
    weight: float = 1.0


class EnsembleSignal:
    """The targets of ``members`` as one signal over all documents.

    Args:
        vocab_size: the ids that all teachers have; a divergence is between distributions over these.
    """

    def __init__(self, members: Sequence[EnsembleMember], vocab_size: int) -> None:
        self.kind = members[0].signal.kind
        self._members, self._vocab_size = members, vocab_size
        self._own_indices = [{index: own for own, index in enumerate(m.indices)} for m in members]

    def rows(self, requests: Sequence[DocumentPositions], device: torch.device) -> TeacherRows:
        lengths = np.array([len(positions) for _, positions in requests])
        starts = lengths.cumsum() - lengths
        rows_by_member: list[tuple[TeacherRows, torch.Tensor, float]] = []
        for member, own_indices in zip(self._members, self._own_indices, strict=True):
            numbers = [number for number, (index, _) in enumerate(requests) if index in own_indices]
            if numbers:
                own_requests = [(own_indices[requests[n][0]], requests[n][1]) for n in numbers]
                row_numbers = np.concatenate([np.arange(starts[n], starts[n] + lengths[n]) for n in numbers])
                rows = member.signal.rows(own_requests, device)
                assert not isinstance(rows, SpanRows), "an ensemble is over the student's tokens"
                rows_by_member.append((rows, torch.from_numpy(row_numbers).to(device), member.weight))
        return join_rows(rows_by_member, int(lengths.sum()), self._vocab_size)


def join_rows(
    rows_by_teacher: Sequence[tuple[TeacherRows, torch.Tensor, float]], count: int, vocab_size: int
) -> TeacherRows:
    """Joins the rows of several teachers into the rows of one batch.

    Args:
        rows_by_teacher: each teacher's rows, their row numbers in the batch (int64 [n], ascending), and its
            weight. Only whole distributions can be averaged; in the other forms each row has one teacher.
        count: N.
        vocab_size: the ids that all teachers have.
    """
    components = [
        MixtureComponent(rows, indices, weight)
        for rows, indices, weight in rows_by_teacher
        if isinstance(rows, DenseRows)
    ]
    if components:
        assert len(components) == len(rows_by_teacher), "all teachers give their distributions in one form"
        return MixedRows(tuple(components), count, vocab_size)
    assert sum(len(indices) for _, indices, _ in rows_by_teacher) == count, "only dense rows can be averaged"
    order_N = torch.cat([indices for _, indices, _ in rows_by_teacher]).argsort()
    topk = [rows for rows, _, _ in rows_by_teacher if isinstance(rows, TopKRows)]
    if topk:
        ids_NK, logp_NK1 = torch.cat([r.ids_NK for r in topk]), torch.cat([r.logp_NK1 for r in topk])
        return TopKRows(ids_NK[order_N], logp_NK1[order_N], vocab_size)
    sampled = [rows for rows, _, _ in rows_by_teacher if isinstance(rows, SampledRows)]
    widest = max(rows.ids_NK.shape[1] for rows in sampled)
    ids, counts = (
        torch.cat([torch.nn.functional.pad(t, (0, widest - t.shape[1])) for t in tensors])[order_N]
        for tensors in ([r.ids_NK for r in sampled], [r.counts_NK for r in sampled])
    )
    return SampledRows(ids, counts, vocab_size)
