"""Prefill and step through a module's own forward pass, for architectures that have no lean one.

Every layer must attend to the whole sequence; see :func:`~stillhouse.models.sampler.can_sample`.

Shapes: B sequences, P prompts, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from .key_values import KeyValues


class ModuleDecoder:
    """The same interface as :class:`~stillhouse.models.fast_decoder.FastDecoder`."""

    def __init__(self, model: PreTrainedModel, memory: KeyValues) -> None:
        self.model, self.memory = model, memory
        self.place = _Place()
        self.cache = Cache(layers=[_SlotLayer(memory, n, self.place) for n in range(len(memory.layers))])

    def prefill(self, prompts: Sequence[Sequence[int]], slots: Sequence[int]) -> torch.Tensor:
        """Logits [P, V] after each prompt, one prompt at a time."""
        self.memory.clear_to(max(map(len, prompts)))
        logits = []
        for prompt, slot in zip(prompts, slots, strict=True):
            self.place.slot, self.place.rows_R, self.place.total = slot, None, len(prompt)
            ids_1T = torch.tensor([list(prompt)], device=self.model.device)
            positions = torch.arange(len(prompt), device=self.model.device)[None]
            logits.append(self._forward(ids_1T, torch.ones_like(ids_1T), positions))
        return torch.cat(logits)

    def step(self, tokens_B: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] after one more token of the sequences in the first B slots."""
        total = int(lengths_B.max()) + 1
        self.memory.clear_to(total)
        self.place.rows_R, self.place.total = self.memory.rows(lengths_B), total
        mask_BT = torch.arange(total, device=lengths_B.device) <= lengths_B[:, None]
        return self._forward(tokens_B[:, None], mask_BT.long(), lengths_B[:, None])

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.model(
            ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]


class _Place:
    """Where the pass under way writes: at the start of one slot, or at each sequence's own end."""

    slot = 0
    rows_R: torch.Tensor | None = None
    total = 0


class _SlotLayer(DynamicLayer):
    """One layer's keys and values, kept in `KeyValues`."""

    def __init__(self, memory: KeyValues, number: int, place: _Place) -> None:
        super().__init__()
        self.memory, self.number, self.place = memory, number, place

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        rows_R, pairs = self.place.rows_R, torch.cat([key_states, value_states], 1)
        if rows_R is None:
            at = (self.place.slot, slice(None), slice(self.place.total))
            self.memory.write(self.number, at, pairs[0])
            return key_states, value_states
        memory = self.memory.append(self.number, rows_R, pairs[:, :, 0])
        keys, values = memory[: len(pairs), :, : self.place.total].chunk(2, 1)
        return keys, values

    def get_seq_length(self) -> int:
        return 0 if self.place.rows_R is None else self.place.total - 1
