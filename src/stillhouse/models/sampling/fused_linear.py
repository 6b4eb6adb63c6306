"""The matrix products of the fast decoder, concatenated and fused where that is faster.

Half-precision weights on a CPU are packed once for oneDNN, which takes their memory a second time (twice that
in float32, see :func:`product_dtype`). What follows a product (SiLU, the residual) then happens inside it, in
float32. Elsewhere the modules' own weights are used; only those of concatenated products are copied.

Modules that are not plain ``nn.Linear`` (adapters, for instance) are called as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from stillhouse.models.sampling.cpu import cpu_has_bfloat16

__all__ = ["Product", "added", "gated", "joined", "product_dtype"]

Product = Callable[[torch.Tensor], torch.Tensor]
PACKED_FOR = 64  # rows of a product for which oneDNN lays out the weights


def product_dtype(weight: torch.Tensor, modules: Iterable[nn.Module]) -> torch.dtype:
    """The type of the products: the weights' own; float32 for half precision on a CPU that emulates it.

    Such a CPU takes ten times as long for a bfloat16 product as for the same product in float32.
    """
    emulated = weight.device.type == "cpu" and weight.dtype != torch.float32 and not cpu_has_bfloat16()
    return torch.float32 if emulated and all(map(_is_plain, modules)) else weight.dtype


def joined(modules: Sequence[nn.Module], dtype: torch.dtype) -> Product:
    """A function from [N, in] to the concatenated outputs of linear ``modules``, [N, out]."""
    if not _is_plain(*modules):
        return lambda x: torch.cat([module(x) for module in modules], -1)
    linears: list[Any] = list(modules)
    weight = torch.cat([linear.weight for linear in linears]) if len(linears) > 1 else linears[0].weight
    weight = weight.detach()
    biases = [bias for linear in linears if (bias := _bias(linear, dtype)) is not None]
    bias = torch.cat(biases) if biases else None
    if not _can_pack(weight, dtype):
        return lambda x: F.linear(x, weight, bias)
    packed = _packed(weight, dtype)
    return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, bias, "none", [], "")


def gated(gate: Any, up: Any, dtype: torch.dtype) -> Product:
    """A function from x [N, in] to silu(gate(x)) · up(x), [N, out]."""
    if not _is_plain(gate, up) or not _can_pack(gate.weight, dtype):
        of_gate, of_up = joined([gate], dtype), joined([up], dtype)
        return lambda x: F.silu(of_gate(x), inplace=True).mul_(of_up(x))
    of_gate, of_up = _packed(gate.weight, dtype), _packed(up.weight, dtype)
    gate_bias, up_bias = _bias(gate, dtype), _bias(up, dtype)

    def product(x: torch.Tensor) -> torch.Tensor:
        # The activation and the multiplication happen on oneDNN's float32 sums, before they are rounded.
        activated = torch.ops.mkldnn._linear_pointwise(x, of_gate, gate_bias, "swish", [], "")
        return torch.ops.mkldnn._linear_pointwise.binary(x, activated, of_up, up_bias, "mul")

    return product


def added(module: Any, dtype: torch.dtype) -> Callable[[torch.Tensor, torch.Tensor], torch.Tensor]:
    """A function of x [N, in] and a residual [N, out] to residual + module(x)."""
    if not _is_plain(module) or not _can_pack(module.weight, dtype):
        product = joined([module], dtype)
        return lambda x, residual: residual + product(x)
    packed, bias = _packed(module.weight, dtype), _bias(module, dtype)
    return lambda x, residual: torch.ops.mkldnn._linear_pointwise.binary(x, residual, packed, bias, "add")


def _is_plain(*modules: nn.Module) -> bool:
    return all(type(module) is nn.Linear for module in modules)


def _can_pack(weight: torch.Tensor, dtype: torch.dtype) -> bool:
    half = weight.device.type == "cpu" and weight.dtype != torch.float32
    if not half or not torch.backends.mkldnn.is_available():
        return False
    bfloat16 = dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return bfloat16 or dtype == torch.float32


def _packed(weight: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return torch.ops.mkldnn._reorder_linear_weight(weight.detach().to(dtype), PACKED_FOR)


def _bias(linear: Any, dtype: torch.dtype) -> torch.Tensor | None:
    return None if linear.bias is None else linear.bias.detach().to(dtype)
