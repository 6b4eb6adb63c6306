"""Attention masks of a step in which each sequence of the batch has its own length.

transformers creates a mask from the position of the first query, one number for the whole batch. That is
enough for attention to the whole sequence, where a padding mask hides what a shorter sequence has not
written, but a sliding window or a chunk must be counted back from each sequence's own last token. The mask
functions that are registered here evaluate the model's own rule (causal, window, chunk …) at those positions.

Shapes: B sequences.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import torch
from transformers import AttentionMaskInterface
from transformers.masking_utils import eager_mask, sdpa_mask

_positions: ContextVar[torch.Tensor | None] = ContextVar("positions", default=None)


@contextlib.contextmanager
def masks_at(positions_B: torch.Tensor) -> Iterator[None]:
    """Makes the masks of forward passes inside the block those of one query for each row, at its position."""
    if int(positions_B.min()) == int(positions_B.max()):
        yield  # transformers' own mask is right, and sometimes none is needed
        return
    token = _positions.set(positions_B)
    try:
        yield
    finally:
        _positions.reset(token)


def _at_row_positions(create_mask: Callable[..., torch.Tensor | None]) -> Callable[..., torch.Tensor | None]:
    @functools.wraps(create_mask)
    def create(*args: Any, **kwargs: Any) -> torch.Tensor | None:
        positions_B = _positions.get()
        if positions_B is None:
            return create_mask(*args, **kwargs)
        allowed = kwargs["mask_function"]

        def allowed_from_row(row: Any, head: Any, _query: Any, key: Any) -> Any:
            return allowed(row, head, positions_B[row], key)

        return create_mask(
            *args, **{**kwargs, "mask_function": allowed_from_row, "allow_is_causal_skip": False}
        )

    return create


AttentionMaskInterface.register("sdpa", _at_row_positions(sdpa_mask))
AttentionMaskInterface.register("eager", _at_row_positions(eager_mask))
