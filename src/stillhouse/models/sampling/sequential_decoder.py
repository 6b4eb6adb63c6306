"""Prefill and decoding steps of one sequence at a time, each with transformers' own cache.

Slower than a batch, and right for every model that transformers can generate with: recurrent layers, and
rotations that depend on the length of the sequence. A prompt is read in one pass, and a cache is copied only
as a whole, since the state of a recurrent layer cannot be cut back to a shorter prefix.

Shapes: B sequences, P prompts, N tokens, V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from stillhouse.errors import CapabilityError


@dataclass
class _CachedSequence:
    cache: Any = None
    """transformers' cache; None before the first pass."""
    ids: list[int] = field(default_factory=list)


class SequenceCaches:
    """One transformers cache for each slot; the same interface as ``KeyValues``."""

    def __init__(self, slots: int) -> None:
        self.slots = self.spare = slots
        self.sequences = [_CachedSequence() for _ in range(slots + 1)]

    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """Copies slot ``source``, which holds ``length`` tokens, to the slots ``targets``."""
        assert length == len(self.sequences[source].ids)
        for target in targets:
            self.sequences[target] = copy.deepcopy(self.sequences[source])


class SequentialDecoder:
    """The same interface as :class:`~stillhouse.models.sampling.fast_decoder.FastDecoder`.

    Args:
        switch: the length beyond which the model's rotations change (:func:`rotation_switch`), or None. A
            sequence that grows beyond it is read again from its beginning, as Phi-3's ``generate`` does.
    """

    shares_prefixes = False

    def __init__(self, model: PreTrainedModel, slots: int, switch: int | None) -> None:
        self.model, self.switch = model, switch
        self.memory = SequenceCaches(slots)

    def prefill(self, prompts: Sequence[Sequence[int]], slots: Sequence[int]) -> torch.Tensor:
        """Logits [P, V] after each prompt."""
        return torch.cat([self.extend(ids, slot, 0) for ids, slot in zip(prompts, slots, strict=True)])

    def extend(self, ids: Sequence[int], slot: int, past: int, *, every: bool = False) -> torch.Tensor:
        """Logits [1, V] (or [N, V]) after ``ids``, which follow the ``past`` tokens in ``slot``.

        Raises:
            CapabilityError: the model has a cache of another interface.
        """
        sequence = self.memory.sequences[slot] if past else _CachedSequence()
        assert past == len(sequence.ids)
        sequence.ids += ids
        unread = list(ids)
        if self.switch is not None and past <= self.switch < len(sequence.ids):
            sequence.cache, unread = None, sequence.ids
        output: Any = self.model(
            torch.tensor([unread], device=self.model.device),
            past_key_values=sequence.cache,
            use_cache=True,
            logits_to_keep=len(ids) if every else 1,
        )
        if getattr(output, "past_key_values", None) is None:
            raise CapabilityError(f"sampling from a {self.model.config.model_type} model is not supported")
        sequence.cache = output.past_key_values
        self.memory.sequences[slot] = sequence
        return output.logits[0]

    def step(self, tokens_B: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] after one more token of the sequences in the first B slots."""
        steps = enumerate(zip(tokens_B.tolist(), lengths_B.tolist(), strict=True))
        return torch.cat([self.extend([token], slot, length) for slot, (token, length) in steps])
