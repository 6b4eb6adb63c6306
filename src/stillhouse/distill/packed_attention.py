"""Attention that stays inside each document of a packed row.

A packed row is several documents in one sequence. A dense block mask over it would
cost the square of the row; this attention function, registered with transformers,
runs causal attention on each document alone and costs the sum of the documents'
squares. It knows sliding windows; soft-capped scores and sinks it refuses, and whatever
else it does not know :func:`stillhouse.distill.packing.choose_layout` finds out by comparing.

Shapes: S tokens of the row, H query heads, K key heads, E head size, T tokens of a document.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AttentionInterface

NAME = "stillhouse_packed"


def packed_attention(
    module: torch.nn.Module,
    query_1HSE: Tensor,
    key_1KSE: Tensor,
    value_1KSE: Tensor,
    attention_mask: Tensor | None,
    *,
    document_lengths: Sequence[int],
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document; the signature is transformers' attention interface.

    Args:
        document_lengths: tokens of each document, in the row's order; their sum is S.
        sliding_window: a token sees itself and this many tokens less one before it.

    Returns:
        The heads' outputs [1, S, H, E], and no weights.

    Raises:
        NotImplementedError: the model caps its scores (Gemma 2) or has sinks (gpt-oss).
    """
    if softcap is not None or s_aux is not None:
        raise NotImplementedError("packed attention has neither soft-capped scores nor sinks")
    dtype = query_1HSE.dtype
    if query_1HSE.device.type == "cpu" and dtype == torch.bfloat16:
        # In bfloat16 each new document length costs oneDNN new kernels; float32 passes are a fifth faster.
        query_1HSE, key_1KSE, value_1KSE = query_1HSE.float(), key_1KSE.float(), value_1KSE.float()
    # split, not slices: the gradient of a slice is a zero-filled whole row for every document
    queries, keys, values = (
        tensor.split(list(document_lengths), dim=2) for tensor in (query_1HSE, key_1KSE, value_1KSE)
    )
    outputs_1HTE = []
    for query_1HTE, key_1KTE, value_1KTE in zip(queries, keys, values, strict=True):
        mask_TT = _window_mask(query_1HTE, sliding_window)
        output_1HTE = F.scaled_dot_product_attention(
            query_1HTE,
            key_1KTE,
            value_1KTE,
            attn_mask=mask_TT,
            dropout_p=dropout,
            is_causal=mask_TT is None,
            scale=scaling,
            enable_gqa=query_1HTE.shape[1] != key_1KTE.shape[1],
        )
        outputs_1HTE.append(output_1HTE)
    return torch.cat(outputs_1HTE, dim=2).transpose(1, 2).to(dtype), None


def _window_mask(query_1HTE: Tensor, sliding_window: int | None) -> Tensor | None:
    """What a token may see when the window is shorter than the document, bool [T, T]; else None."""
    length = query_1HTE.shape[2]
    if sliding_window is None or length <= sliding_window:
        return None
    everything_TT = torch.ones(length, length, dtype=torch.bool, device=query_1HTE.device)
    return everything_TT.tril().triu(1 - sliding_window)


AttentionInterface.register(NAME, packed_attention)
