"""Runs a transformers model whose weights are read layer by layer, as the forward pass reaches them.

A model of any size then needs the memory of one layer. Used to check exported files, for a few hundred
tokens at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn
    from transformers import PreTrainedConfig


def streamed_logprobs(config: PreTrainedConfig, read: Callable[[str], Tensor], ids: Sequence[int]) -> Tensor:
    """Log-probabilities [T, V] of the token after each of ``ids``, in float32.

    Args:
        read: returns the parameter of this name in float32.
    """
    import torch

    model = _without_weights(config)
    layers = list(model.model.layers)
    inside = {module for layer in layers for module in layer.modules()}
    others = [module for module in model.modules() if module not in inside and module._parameters]
    prefixes = {module: name for name, module in model.named_modules()}
    for unit in (*layers, *others):
        unit.register_forward_pre_hook(_filling(prefixes[unit], read))
        unit.register_forward_hook(_emptying)
    with torch.inference_mode():
        return model(torch.tensor([list(ids)]), use_cache=False).logits[0].log_softmax(-1)


def _without_weights(config: PreTrainedConfig) -> Any:
    """The model with parameters that take no memory, and real buffers (rotary frequencies)."""
    import torch
    from transformers import AutoModelForCausalLM

    with _parameters_without_memory():
        # Other implementations of attention leave out Gemma 2's cap on attention scores.
        model = AutoModelForCausalLM.from_config(
            copy.deepcopy(config), dtype=torch.float32, attn_implementation="eager", trust_remote_code=False
        )
    return model.eval()


@contextmanager
def _parameters_without_memory() -> Iterator[None]:
    """Moves every new parameter to the meta device. (`torch.device("meta")` would also move buffers.)"""
    from torch import nn

    register = nn.Module.register_parameter

    def register_on_meta(self: nn.Module, name: str, param: nn.Parameter | None) -> None:
        register(self, name, param if param is None else _on_meta(param))

    nn.Module.register_parameter = register_on_meta
    try:
        yield
    finally:
        nn.Module.register_parameter = register


def _on_meta(parameter: Tensor) -> nn.Parameter:
    from torch import nn

    return nn.Parameter(parameter.detach().to("meta"), requires_grad=False)


def _filling(prefix: str, read: Callable[[str], Tensor]) -> Callable[[nn.Module, Any], None]:
    def fill(unit: nn.Module, _: Any) -> None:
        from torch import nn

        for name, module in unit.named_modules(prefix=prefix):
            for key, parameter in module._parameters.items():
                if parameter is not None:
                    module._parameters[key] = nn.Parameter(read(f"{name}.{key}"), requires_grad=False)

    return fill


def _emptying(unit: nn.Module, *_: Any) -> None:
    for module in unit.modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                module._parameters[key] = _on_meta(parameter)
