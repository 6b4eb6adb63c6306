"""Several teachers as one source of targets: each speaks of its own documents, alone or averaged.

The average is the mixture of their distributions, Σ_i w_i P_i, which a student nears when it nears
each of them in forward KL: Σ_i w_i KL(P_i‖Q) = KL(Σ_i w_i P_i‖Q) + a term without Q.

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
    from stillhouse.distill.targets.signal import Positions, TeacherSignal


@dataclass(frozen=True, eq=False)
class EnsembleMember:
    """One of several teachers.

    Args:
        signal: its targets, over the documents that it reads.
        indices: which documents of the whole those are, in order.
        weight: its share of their distributions; at each document the shares of all members sum to 1.
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
        self._places = [{index: place for place, index in enumerate(m.indices)} for m in members]

    def rows(self, parts: Sequence[Positions], device: torch.device) -> TeacherRows:
        lengths = np.array([len(positions) for _, positions in parts])
        starts = lengths.cumsum() - lengths
        said: list[tuple[TeacherRows, torch.Tensor, float]] = []
        for member, places in zip(self._members, self._places, strict=True):
            own = [number for number, (index, _) in enumerate(parts) if index in places]
            if own:
                asked = [(places[parts[number][0]], parts[number][1]) for number in own]
                where = np.concatenate([np.arange(starts[n], starts[n] + lengths[n]) for n in own])
                rows = member.signal.rows(asked, device)
                assert not isinstance(rows, SpanRows), "their rows are at the student's tokens"
                said.append((rows, torch.from_numpy(where).to(device), member.weight))
        return join_rows(said, int(lengths.sum()), self._vocab_size)


def join_rows(
    said: Sequence[tuple[TeacherRows, torch.Tensor, float]], count: int, vocab_size: int
) -> TeacherRows:
    """Rows of several teachers as rows of one batch.

    Args:
        said: each teacher's rows, which rows of the batch they are (int64 [n], ascending), and its weight
            there. Only whole distributions can be averaged: of the other forms each row has one teacher.
        count: N.
        vocab_size: the ids that all teachers have.
    """
    shares = [MixtureComponent(rows, where, w) for rows, where, w in said if isinstance(rows, DenseRows)]
    if shares:
        assert len(shares) == len(said), "all teachers tell their distributions in one form"
        return MixedRows(tuple(shares), count, vocab_size)
    assert sum(len(where) for _, where, _ in said) == count, "cut distributions cannot be averaged"
    order_N = torch.cat([where for _, where, _ in said]).argsort()
    topk = [rows for rows, _, _ in said if isinstance(rows, TopKRows)]
    if topk:
        ids_NK, logp_NK1 = torch.cat([r.ids_NK for r in topk]), torch.cat([r.logp_NK1 for r in topk])
        return TopKRows(ids_NK[order_N], logp_NK1[order_N], vocab_size)
    drawn = [rows for rows, _, _ in said if isinstance(rows, SampledRows)]
    widest = max(rows.ids_NK.shape[1] for rows in drawn)
    ids, counts = (
        torch.cat([torch.nn.functional.pad(t, (0, widest - t.shape[1])) for t in tensors])[order_N]
        for tensors in ([r.ids_NK for r in drawn], [r.counts_NK for r in drawn])
    )
    return SampledRows(ids, counts, vocab_size)
