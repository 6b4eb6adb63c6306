"""Prefill and decoding steps through a module's own forward pass, for architectures without a fast decoder.

All sequences advance in one pass. That is right for layers whose keys and values depend on their token alone,
with any mask (whole sequence, sliding windows, chunks), and wrong for recurrent layers:
:mod:`.open_decoder` finds out.

Shapes: B sequences, P prompts, T tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from stillhouse.models.sampling.kv_cache import KeyValues
from stillhouse.models.sampling.row_masks import masks_at


class ModuleDecoder:
    """The same interface as :class:`~stillhouse.models.sampling.fast_decoder.FastDecoder`."""

    shares_prefixes = True

    def __init__(self, model: PreTrainedModel, memory: KeyValues) -> None:
        self.model, self.memory = model, memory
        self.target = _WriteTarget()
        self.cache = Cache(layers=[_SlotLayer(memory, n, self.target) for n in range(len(memory.layers))])

    def prefill(self, prompts: Sequence[Sequence[int]], slots: Sequence[int]) -> torch.Tensor:
        """Logits [P, V] after each prompt, one prompt at a time."""
        logits = []
        for prompt, slot in zip(prompts, slots, strict=True):
            logits.append(self.extend(prompt, slot, 0))
        return torch.cat(logits)

    def extend(self, ids: Sequence[int], slot: int, past: int, *, every: bool = False) -> torch.Tensor:
        """Logits [1, V] (or [N, V]) after ``ids``, which follow the first ``past`` tokens in ``slot``."""
        total = past + len(ids)
        self.memory.clear_to(total)
        self.target.slot, self.target.rows_R = slot, None
        self.target.past, self.target.total = past, total
        ids_1N = torch.tensor([list(ids)], device=self.model.device)
        positions = torch.arange(past, total, device=self.model.device)[None]
        mask_1T = torch.ones(1, total, dtype=torch.long, device=self.model.device)
        return self._forward(ids_1N, mask_1T, positions, keep=len(ids) if every else 1)[0]

    def step(self, tokens_B: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] after one more token of the sequences in the first B slots."""
        total = int(lengths_B.max()) + 1
        self.memory.clear_to(total)
        self.target.rows_R, self.target.total = self.memory.rows(lengths_B), total
        mask_BT = torch.arange(total, device=lengths_B.device) <= lengths_B[:, None]
        with masks_at(lengths_B):
            return self._forward(tokens_B[:, None], mask_BT.long(), lengths_B[:, None])[:, -1]

    def _forward(
        self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor, *, keep: int = 1
    ) -> torch.Tensor:
        return self.model(
            ids,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=keep,
        ).logits


class _WriteTarget:
    """Where the current pass writes: into one slot after its past, or at the end of each sequence.

    transformers hands a cache layer the keys and values but not the sequences they belong to, so the decoder
    leaves that here before each pass.
    """

    slot = 0
    past = 0
    rows_R: torch.Tensor | None = None
    """Rows of a step; None while a prompt is read."""
    total = 0


class _SlotLayer(DynamicLayer):
    """One layer of transformers' cache that keeps its keys and values in `KeyValues`."""

    def __init__(self, memory: KeyValues, number: int, target: _WriteTarget) -> None:
        super().__init__()
        self.memory, self.number, self.target = memory, number, target

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        key_width, value_width = key_states.shape[-1], value_states.shape[-1]
        # Latent attention has keys and values of different width; the memory has one width for both.
        width = max(key_width, value_width)
        rows_R, pairs = (
            self.target.rows_R,
            torch.cat([_widened(key_states, width), _widened(value_states, width)], 1),
        )
        if rows_R is None:
            slot, past, total = self.target.slot, self.target.past, self.target.total
            self.memory.write(self.number, (slot, slice(None), slice(past, total)), pairs[0])
            if past:
                memory = self.memory.layers[self.number]
                assert memory is not None
                keys, values = memory[slot : slot + 1, :, :total].chunk(2, 1)
                return keys[..., :key_width], values[..., :value_width]
            return key_states, value_states
        memory = self.memory.append(self.number, rows_R, pairs[:, :, 0])
        keys, values = memory[: len(pairs), :, : self.target.total].chunk(2, 1)
        return keys[..., :key_width], values[..., :value_width]

    def get_seq_length(self) -> int:
        return self.target.past if self.target.rows_R is None else self.target.total - 1


def _widened(heads: torch.Tensor, width: int) -> torch.Tensor:
    """``heads`` with zeros at the end of the last dimension, up to ``width``."""
    return heads if heads.shape[-1] == width else F.pad(heads, (0, width - heads.shape[-1]))
