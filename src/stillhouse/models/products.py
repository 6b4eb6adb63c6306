"""The matrix products of a lean forward pass, joined and fused where that is faster.

Where oneDNN multiplies bfloat16 the weights are packed once, which takes their memory a second time, and
what follows a product (SiLU, the residual) happens inside it, in float32. Elsewhere the modules' own weights
are used; only those of a joined product are copied.

Modules that are not plain ``nn.Linear`` (adapters, for instance) are called as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["Product", "added", "gated", "joined"]

Product = Callable[[torch.Tensor], torch.Tensor]
PACKED_FOR = 64  # tokens a product that oneDNN lays its weights out for


def joined(modules: Sequence[nn.Module]) -> Product:
    """A function from [N, in] to the outputs of linear ``modules`` side by side, [N, out]."""
    if not _plain(*modules):
        return lambda x: torch.cat([module(x) for module in modules], -1)
    linears: list[Any] = list(modules)
    if len(linears) == 1 and not _packs(linears[0]):
        return linears[0]
    weight, bias = linears[0].weight.detach(), linears[0].bias
    if len(linears) > 1:
        weight = torch.cat([linear.weight for linear in linears]).detach()
        bias = None if bias is None else torch.cat([linear.bias for linear in linears])
    if not _packs(linears[0]):
        return lambda x: F.linear(x, weight, bias)
    packed = _packed(weight)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def gated(gate: Any, up: Any) -> Product:
    """A function from x [N, in] to silu(gate(x)) · up(x), [N, out]."""
    if not _plain(gate, up) or not _packs(gate):
        return lambda x: F.silu(gate(x), inplace=True).mul_(up(x))
    of_gate, of_up = _packed(gate.weight), _packed(up.weight)

    def product(x: torch.Tensor) -> torch.Tensor:
        opened = torch.ops.mkldnn._linear_pointwise(x, of_gate, gate.bias, "swish", [], "")
        return torch.ops.mkldnn._linear_pointwise.binary(x, opened, of_up, up.bias, "mul")

    return product


def added(module: Any) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A function of x [N, in] and a residual [N, out]: the residual + module(x)."""
    if not _plain(module) or not _packs(module):
        return lambda x, residual: residual + module(x)
    packed = _packed(module.weight)
    return lambda x, residual: torch.ops.mkldnn._linear_pointwise.binary(
        x, residual, packed, module.bias, "add"
    )


def _plain(*modules: nn.Module) -> bool:
    return all(type(module) is nn.Linear for module in modules)


def _packs(linear: Any) -> bool:
    weight = linear.weight
    if weight.device.type != "cpu" or weight.dtype != torch.bfloat16:
        return False
    return torch.backends.mkldnn.is_available() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _packed(weight: torch.Tensor) -> torch.Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach(), PACKED_FOR)
