"""Mixed precision: bfloat16 passes over float32 weights.

The student's parameters are the masters: float32, changed by the optimizer and saved. In bfloat16 a working
copy runs the passes; its gradients are summed in float32, and the masters are copied into it after each step.
In float32 the student is its own working copy.

Buffers are never cast: rotary frequencies in bfloat16 would shift every position.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor, nn

from stillhouse.models import cpu_has_bfloat16

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def compute_dtype(dtype: Literal["auto", "bfloat16", "float32"], device: torch.device) -> torch.dtype:
    """The dtype of the passes; ``auto`` is bfloat16 if the hardware multiplies it, else float32."""
    if dtype == "auto":
        fast = torch.cuda.is_bf16_supported() if device.type == "cuda" else cpu_has_bfloat16()
        return torch.bfloat16 if fast else torch.float32
    return torch.bfloat16 if dtype == "bfloat16" else torch.float32


class WorkingCopy:
    """The module that runs the passes, tied to the parameters that are trained.

    Args:
        model: its parameters that require a gradient become the masters; float32.
        dtype: the compute type.
    """

    def __init__(self, model: PreTrainedModel, dtype: torch.dtype) -> None:
        self.masters: dict[str, nn.Parameter] = {
            name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad
        }
        self.module = model
        self._copies: list[Tensor] = []
        if dtype == torch.float32:
            return
        # Through deepcopy's memo, so that parameters that are tied in the model stay tied in its copy.
        copies = {
            id(p): nn.Parameter(p.detach().to(dtype), requires_grad=p.requires_grad)
            for p in model.parameters()
        }
        self.module = copy.deepcopy(model, memo=dict(copies))
        for master in self.masters.values():
            working = copies[id(master)]
            working.register_post_accumulate_grad_hook(_move_gradient_to(master))
            self._copies.append(working)

    @torch.no_grad()
    def refresh(self) -> None:
        """Copies the masters into the working copy."""
        for working, master in zip(self._copies, self.masters.values(), strict=False):
            working.copy_(master)


def _move_gradient_to(master: nn.Parameter):
    """A hook that adds a working parameter's gradient to its master's, in the master's type."""

    def move(working: Tensor) -> None:
        assert working.grad is not None
        if master.grad is None:
            master.grad = working.grad.to(master.dtype)
        else:
            master.grad += working.grad
        working.grad = None

    return move
