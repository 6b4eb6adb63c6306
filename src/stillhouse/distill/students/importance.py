"""Measures the importance of layers, neurons, heads and channels on calibration text.

One forward pass over whole documents, one at a time and without padding. ``prune_depth`` and
``prune_width`` decide what to remove. Importance depends on the text: another may rank the
parts differently.

Shapes: N calibration tokens (all documents end to end), D hidden channels, I MLP neurons,
Q query heads, K key-value heads, L layers.
"""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from stillhouse.distill.students.decoder import layers_of
from stillhouse.errors import EmptyCorpusError

if TYPE_CHECKING:
    from stillhouse.distill.data.documents import Document


MASSIVE_GROWTH = 10.0
"""In SmolLM2-135M layer 11 multiplies a norm by 139, the first layer by 35, no other by more than 7."""


def calibration_sample(documents: Sequence[Document], tokens: int, seed: int) -> list[Tensor]:
    """Samples documents by the seed up to ``tokens`` tokens; the last one is cut to fit.

    Returns:
        Token ids, one int64 tensor [T] per document.

    Raises:
        EmptyCorpusError: there are no documents.
    """
    order = list(range(len(documents)))
    random.Random(seed).shuffle(order)
    sample: list[Tensor] = []
    remaining = tokens
    for index in order:
        ids = torch.as_tensor(documents[index].ids[:remaining], dtype=torch.int64)
        if len(ids):
            sample.append(ids)
            remaining -= len(ids)
        if remaining <= 0:
            break
    if not sample:
        raise EmptyCorpusError("there is no calibration text to measure importance on")
    return sample


@dataclass(frozen=True)
class ResidualStream:
    """The residual stream of a model over the calibration text."""

    lengths: list[int]
    """Tokens of each document."""
    hidden_ND: list[Tensor]
    """L + 1 tensors: the input of each layer, and the output of the last (before the final norm)."""
    calls: list[list[dict[str, Any]]]
    """calls[document][layer]: the keyword arguments of the layer (positions, masks)."""


@torch.no_grad()
def record_residual_stream(model: PreTrainedModel, sample: Sequence[Tensor]) -> ResidualStream:
    """Runs the model over the sample and records the hidden states between all layers.

    Holds N * (L + 1) * D numbers in memory (0.6 GB for 8,192 tokens of a model with 30
    layers of 576 channels in float32).
    """
    layers = layers_of(model)
    hidden: list[list[Tensor]] = [[] for _ in range(len(layers) + 1)]
    calls: list[list[dict[str, Any]]] = []

    def record_input(index: int) -> Callable[..., None]:
        def hook(_layer: nn.Module, args: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
            hidden[index].append(args[0][0])
            calls[-1].append(kwargs)

        return hook

    def record_output(_layer: nn.Module, _args: object, output: Tensor) -> None:
        hidden[-1].append(output[0])

    handles = [
        layer.register_forward_pre_hook(record_input(i), with_kwargs=True) for i, layer in enumerate(layers)
    ]
    handles.append(layers[-1].register_forward_hook(record_output))
    with temporary_hooks(handles):
        for ids in sample:
            calls.append([])
            run_decoder(model, ids)
    return ResidualStream([len(ids) for ids in sample], [torch.cat(documents) for documents in hidden], calls)


def block_influence(hidden_ND: Sequence[Tensor]) -> list[float]:
    """Block influence of each layer: 1 - mean cosine similarity of its input and output, L numbers.

    Men et al. 2024, "ShortGPT: Layers in Large Language Models are More Redundant Than You
    Expect", equation 1. A layer that changes only the norm has 0.
    """
    pairs = itertools.pairwise(hidden_ND)
    return [1.0 - F.cosine_similarity(a.double(), b.double(), dim=-1).mean().item() for a, b in pairs]


def massive_activation_layers(hidden_ND: Sequence[Tensor]) -> list[int]:
    """Layers that multiply the norm of any token's state by at least 10.

    They create the massive activations (Sun et al. 2024, "Massive Activations in Large Language
    Models") on which later layers rest their attention. It is one token per document, so a mean
    over tokens does not show it: in SmolLM2-135M layer 11 creates it, with an influence like its
    neighbours', and without that layer no later one works (docs/students.md has the figures).
    """
    lengths_N = [hidden.norm(dim=-1) for hidden in hidden_ND]
    # 0/0 for padding tokens, which are zero throughout.
    growth = [
        torch.nan_to_num(after / before).max().item() for before, after in itertools.pairwise(lengths_N)
    ]
    return [layer for layer, factor in enumerate(growth) if factor >= MASSIVE_GROWTH]


@dataclass(frozen=True)
class WidthImportance:
    """Mean activations of neurons, heads and channels (Muralidharan et al. 2024, section 2.2)."""

    neurons_LI: list[Tensor]
    """Mean absolute input of ``down_proj``, a tensor [I] per layer."""
    groups_LK: list[Tensor]
    """Mean L2 norm of a head's output (the input of ``o_proj``), summed over the query heads that
    share a key-value head, a tensor [K] per layer."""
    channels_D: Tensor
    """Mean absolute output of the layers' norms, summed over all of them."""
    energy_D: list[Tensor]
    """For each norm in ``norms_of``: mean squared input after division by its root mean square."""


@torch.no_grad()
def width_importance(model: PreTrainedModel, sample: Sequence[Tensor]) -> WidthImportance:
    """Measures neurons, heads and channels in one pass.

    Minitron: Muralidharan et al. 2024, "Compact Language Models via Pruning and Knowledge
    Distillation", section 2.2; means over tokens of absolute values, and of L2 norms for heads.
    """
    layers = layers_of(model)
    config = model.config
    head_dim = head_size(config)
    total = sum(len(ids) for ids in sample)
    neurons = [_TokenSum() for _ in layers]
    heads = [_TokenSum() for _ in layers]
    norms = norms_of(model)
    outputs, energies = [_TokenSum() for _ in norms], [_TokenSum() for _ in norms]

    handles = []
    for layer, neuron, head in zip(layers, neurons, heads, strict=True):
        handles.append(
            layer.get_submodule("mlp.down_proj").register_forward_pre_hook(neuron.add_input(Tensor.abs))
        )
        per_head = _head_norms(head_dim)
        handles.append(
            layer.get_submodule("self_attn.o_proj").register_forward_pre_hook(head.add_input(per_head))
        )
    for norm, output, energy in zip(norms, outputs, energies, strict=True):
        handles.append(norm.register_forward_pre_hook(energy.add_input(_normalised_square)))
        handles.append(norm.register_forward_hook(output.add_output(Tensor.abs)))
    with temporary_hooks(handles):
        for ids in sample:
            run_decoder(model, ids)

    groups = config.num_key_value_heads
    return WidthImportance(
        neurons_LI=[neuron.total / total for neuron in neurons],
        groups_LK=[head.total.view(groups, -1).sum(1) / total for head in heads],
        channels_D=torch.stack([output.total / total for output in outputs[:-1]]).sum(0),
        energy_D=[energy.total / total for energy in energies],
    )


def norms_of(model: PreTrainedModel) -> list[nn.Module]:
    """Every norm of the residual stream: two per layer, then the final one."""
    names = ("input_layernorm", "post_attention_layernorm")
    norms = [layer.get_submodule(name) for layer in layers_of(model) for name in names]
    return [*norms, getattr(model, model.base_model_prefix).norm]


def head_size(config: Any) -> int:
    """Channels of one attention head."""
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def run_decoder(model: PreTrainedModel, ids: Tensor) -> None:
    """One forward pass of the decoder over one document [T], without cache and head."""
    decoder = getattr(model, model.base_model_prefix)
    decoder(ids[None].to(next(model.parameters()).device), use_cache=False)


@contextlib.contextmanager
def temporary_hooks(handles: Sequence[Any]) -> Iterator[None]:
    """Removes hooks at the end of the block, even after an error."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


class _TokenSum:
    """A hook that sums a measure of a module's input or output over tokens, in float64."""

    def __init__(self) -> None:
        self.total: Tensor = torch.zeros((), dtype=torch.float64)

    def add_input(self, measure: Callable[[Tensor], Tensor]) -> Callable[..., None]:
        def hook(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
            self.total = self.total + measure(args[0][0]).sum(0, dtype=torch.float64)

        return hook

    def add_output(self, measure: Callable[[Tensor], Tensor]) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: object, output: Tensor) -> None:
            self.total = self.total + measure(output[0]).sum(0, dtype=torch.float64)

        return hook


def _head_norms(head_dim: int) -> Callable[[Tensor], Tensor]:
    return lambda out_NA: out_NA.view(len(out_NA), -1, head_dim).norm(dim=-1)


def _normalised_square(hidden_ND: Tensor) -> Tensor:
    square_ND = hidden_ND.square()
    return torch.nan_to_num(square_ND / square_ND.mean(-1, keepdim=True))  # padding tokens may be all zero
