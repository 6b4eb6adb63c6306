"""AdamW for a student: which parameters are trained, and which have weight decay.

Weight decay is decoupled (Loshchilov & Hutter 2019) and applies to matrices only, not to gains and
biases.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import nn

from stillhouse.recipe import Train

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@contextlib.contextmanager
def frozen_embeddings(model: PreTrainedModel, frozen: bool) -> Iterator[None]:
    """Freezes token embeddings and output head inside the block, if ``frozen``."""
    modules = (model.get_input_embeddings(), model.get_output_embeddings()) if frozen else ()
    parameters = [p for module in modules if module for p in module.parameters() if p.requires_grad]
    for parameter in parameters:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)


def make_optimizer(parameters: Iterable[nn.Parameter], settings: Train) -> torch.optim.AdamW:
    """AdamW in its fused form, on the CPU too: one pass over memory per step."""
    parameters = list(parameters)
    return torch.optim.AdamW(
        [
            {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": settings.weight_decay},
            {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
        ],
        lr=settings.learning_rate,
        betas=settings.betas,
        fused=True,
    )
