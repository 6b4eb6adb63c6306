"""Attention confined to each document of a packed row.

A packed row is several documents in one sequence. A dense block mask over it costs the square of the row;
this attention function, registered with transformers, runs causal attention on each segment alone and costs
the sum of their squares. A segment is a document, or a prompt, or an answer that continues a prompt which
other answers share. Sliding windows are supported; soft-capped scores and sinks raise an error. Anything else
that is not supported shows in the comparison of :func:`stillhouse.distill.forward.packing.choose_layout`.

Shapes: S tokens of the row, H query heads, K key heads, E head size, T tokens of a segment, U tokens of the
segment and of the prompt that it continues.
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
    segment_lengths: Sequence[int] | None = None,
    prefix_segments: Sequence[int | None] | None = None,
    dropout: float = 0.0,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each document; the signature is transformers' attention interface.

    Args:
        segment_lengths: tokens of each segment, in the row's order; their sum is S.
        prefix_segments: for each segment, the number of the earlier segment that it continues and fully
            attends to; None for a document or a prompt. A prefix has no prefix itself.
        sliding_window: a token attends to itself and to the ``sliding_window - 1`` tokens before it.

    Returns:
        The heads' outputs [1, S, H, E], and no weights.

    Raises:
        NotImplementedError: the model caps its scores (Gemma 2), has sinks (gpt-oss), or does not hand on the
            segments (Nemotron, StableLM).
    """
    if segment_lengths is None or prefix_segments is None:
        raise NotImplementedError("the model's attention does not get the segments of the row")
    if softcap is not None or s_aux is not None:
        raise NotImplementedError("packed attention has neither soft-capped scores nor sinks")
    dtype = query_1HSE.dtype
    if query_1HSE.device.type == "cpu" and dtype == torch.bfloat16:
        # In bfloat16 oneDNN compiles kernels for each new length; float32 passes are a fifth faster.
        query_1HSE, key_1KSE, value_1KSE = query_1HSE.float(), key_1KSE.float(), value_1KSE.float()
    # split, not slices: the gradient of a slice is a zero-filled whole row for every segment
    queries, keys, values = (
        tensor.split(list(segment_lengths), dim=2) for tensor in (query_1HSE, key_1KSE, value_1KSE)
    )
    outputs_1HTE = []
    for query_1HTE, key_1KTE, value_1KTE, before in zip(queries, keys, values, prefix_segments, strict=True):
        key_1KUE, value_1KUE = key_1KTE, value_1KTE
        if before is not None:
            key_1KUE = torch.cat([keys[before], key_1KTE], dim=2)
            value_1KUE = torch.cat([values[before], value_1KTE], dim=2)
        mask_TU = _mask(query_1HTE, key_1KUE, sliding_window)
        output_1HTE = F.scaled_dot_product_attention(
            query_1HTE,
            key_1KUE,
            value_1KUE,
            attn_mask=mask_TU,
            dropout_p=dropout,
            is_causal=mask_TU is None,
            scale=scaling,
            enable_gqa=query_1HTE.shape[1] != key_1KUE.shape[1],
        )
        outputs_1HTE.append(output_1HTE)
    return torch.cat(outputs_1HTE, dim=2).transpose(1, 2).to(dtype), None


def _mask(query_1HTE: Tensor, key_1KUE: Tensor, sliding_window: int | None) -> Tensor | None:
    """The tokens that the last T of U tokens attend to, bool [T, U]; None for plain causal attention."""
    length, seen = query_1HTE.shape[2], key_1KUE.shape[2]
    window = seen if sliding_window is None else min(sliding_window, seen)
    if length == seen == window:
        return None
    before = seen - length
    mask_TU = torch.ones(length, seen, dtype=torch.bool, device=query_1HTE.device)
    return mask_TU.tril(before).triu(before + 1 - window)


AttentionInterface.register(NAME, packed_attention)
