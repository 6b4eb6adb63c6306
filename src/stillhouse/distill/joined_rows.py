"""What the teacher said about several documents, as the rows of one pass.

Shapes: N rows of all documents together, K listed ids.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from .signal_rows import DenseRows, SampledRows, SignalRows, TopKRows


def joined(parts: Sequence[SignalRows]) -> SignalRows:
    """``parts`` one after the other; all come from one signal, so they are of one form."""
    dense = [part for part in parts if isinstance(part, DenseRows)]
    if dense:
        return DenseRows(torch.cat([part.hidden_ND for part in dense]), dense[0].head)
    listed = [part for part in parts if isinstance(part, TopKRows)]
    if listed:
        ids_NK = torch.cat([part.ids_NK for part in listed])
        return TopKRows(ids_NK, torch.cat([part.logp_NK1 for part in listed]), listed[0].vocab_size)
    drawn = [part for part in parts if isinstance(part, SampledRows)]
    assert len(drawn) == len(parts)
    width = max(part.ids_NK.shape[1] for part in drawn)
    ids_NK = torch.cat([_widened(part.ids_NK, width) for part in drawn])
    counts_NK = torch.cat([_widened(part.counts_NK, width) for part in drawn])
    return SampledRows(ids_NK, counts_NK, drawn[0].vocab_size)


def _widened(values_NK: Tensor, width: int) -> Tensor:
    """With zeros to the right; an id with a count of 0 was not drawn."""
    return F.pad(values_NK, (0, width - values_NK.shape[1]))
