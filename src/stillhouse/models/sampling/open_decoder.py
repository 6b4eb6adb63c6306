"""Chooses the decoder of a model by trial, not by what its configuration says about windows or layers.

A tiny random copy of the architecture (:mod:`stillhouse.models.architecture.tiny_copy`) reads a few prompts
and continues them with each decoder, from the fastest down. The first whose logits agree with transformers'
plain forward pass is used. Trials are kept for the life of the process.

Shapes: N tokens, V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Hashable, Sequence
from typing import Any, Literal

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from stillhouse.errors import ContextLengthError, ModelError
from stillhouse.models.architecture.rotations import rotation_switch
from stillhouse.models.architecture.tiny_copy import VOCABULARY, WINDOW, architecture_key, tiny_copy
from stillhouse.models.sampling.fast_decoder import FastDecoder, fast_decoder
from stillhouse.models.sampling.kv_cache import KeyValues
from stillhouse.models.sampling.module_decoder import ModuleDecoder
from stillhouse.models.sampling.sequential_decoder import SequentialDecoder

Decoder = FastDecoder | ModuleDecoder | SequentialDecoder
DecoderKind = Literal["fast", "batched", "sequential"]

_PROMPTS = (2 * WINDOW, WINDOW - 1, 3 * WINDOW)  # tokens; of different length, within and beyond a window
_EXTENDED = (WINDOW - 1, WINDOW + 2)  # a fourth prompt, which is read in two chunks
_STEPS = 3
_TOLERANCE = 1e-3  # × the logits' standard deviation, in float32; what is wrong differs by more than 0.1


def open_decoder(model: PreTrainedModel, slots: int, capacity: int, trial: Sequence[int]) -> Decoder:
    """A decoder of ``model`` for ``slots`` sequences of at most ``capacity`` tokens.

    Args:
        trial: token ids whose first few are read to compare the fast decoder with the model's own weights.

    Raises:
        ContextLengthError: the rotations are not defined by the sequence alone beyond the model's context
            (dynamic NTK: transformers' depend on what was read before).
    """
    switch = rotation_switch(model.config)
    if switch is not None and capacity > switch >= model.config.get_text_config().max_position_embeddings:
        raise ContextLengthError(
            f"sequences of {capacity} tokens are longer than the model's context of {switch}",
            hint="Shorten the prompts, or lower max_tokens.",
        )
    kind = decoder_kind(type(model), model.config)
    if kind == "sequential" or (switch is not None and capacity > switch):
        return SequentialDecoder(model, slots, switch)
    memory = KeyValues(model.config.get_text_config().num_hidden_layers, slots, capacity)
    fast = fast_decoder(model, memory, trial) if kind == "fast" else None
    return fast or ModuleDecoder(model, memory)


def decoder_kind(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> DecoderKind:
    """The fastest decoder that is right for an architecture, within the original context of its rotations.

    ``sequential`` is also the answer where no tiny copy can be built.
    """
    try:
        key = architecture_key(model_class, config)
    except ModelError:
        return "sequential"
    if key not in _kinds:
        _kinds[key] = _tried(model_class, config)
    return _kinds[key]


_kinds: dict[Hashable, DecoderKind] = {}


def _tried(model_class: type[PreTrainedModel], config: PreTrainedConfig) -> DecoderKind:
    try:
        model = tiny_copy(model_class, config)
    except ModelError:
        return "sequential"
    memory = functools.partial(KeyValues, model.config.num_hidden_layers, len(_PROMPTS) + 1)
    capacity = 4 * WINDOW + _STEPS
    with torch.inference_mode():
        fast = fast_decoder(model, memory(capacity), range(1, 9))
        if fast is not None and _agrees(model, fast):
            return "fast"
        try:
            return "batched" if _agrees(model, ModuleDecoder(model, memory(capacity))) else "sequential"
        except Exception:  # the model's own code, with a cache that it does not expect, fails in any way
            return "sequential"


def _agrees(model: PreTrainedModel, decoder: FastDecoder | ModuleDecoder) -> bool:
    """Whether ``decoder`` gives the logits of the model's forward pass over each sequence alone."""
    lengths = [*_PROMPTS, sum(_EXTENDED)]
    sequences = [
        [(7 + 31 * row + 5 * token * token) % VOCABULARY for token in range(length + _STEPS)]
        for row, length in enumerate(lengths)
    ]
    expected = [model(torch.tensor([ids]), use_cache=False).logits[0] for ids in sequences]
    first = decoder.prefill([ids[:-_STEPS] for ids in sequences[:-1]], range(len(_PROMPTS)))
    differences = [first[row] - expected[row][length - 1] for row, length in enumerate(_PROMPTS)]
    spare, read = decoder.memory.spare, 0
    for count in _EXTENDED:
        chunk = sequences[-1][read : read + count]
        logits_NV = decoder.extend(chunk, spare, read, every=True)
        differences += list(logits_NV - expected[-1][read : read + count])
        read += count
    decoder.memory.copy(spare, [len(_PROMPTS)], read)
    for step in range(_STEPS):
        tokens = torch.tensor([ids[length + step] for ids, length in zip(sequences, lengths, strict=True)])
        logits_BV = decoder.step(tokens, torch.tensor(lengths) + step)
        differences += [logits_BV[row] - expected[row][length + step] for row, length in enumerate(lengths)]
    error: Any = torch.stack(differences).abs().max()
    return bool(error <= _TOLERANCE * expected[0].std())
