"""Keys and values of running sequences, in memory laid out once: a slot for each sequence.

One slot more than sequences holds the prompt whose samples did not all find room at once. No
tensor is moved when the batch changes: a sequence that leaves is overwritten by the last one.

Shapes: S slots, H heads of keys and values, T tokens, D width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

FRONTIER = 64  # tokens whose memory is cleared at a time


class KeyValues:
    """Keys and values [S, H, T, D] of every layer; what is beyond a sequence's length is finite, not zero."""

    def __init__(self, layers: int, slots: int, capacity: int) -> None:
        self.slots, self.capacity = slots, capacity
        self.spare = slots
        self.cleared = 0
        self.keys: list[torch.Tensor | None] = [None] * layers
        self.values: list[torch.Tensor | None] = [None] * layers

    def write(
        self, layer: int, at: tuple[object, ...], keys: torch.Tensor, values: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Stores ``keys`` and ``values`` at an index of [S, H, T, D]; returns the layer's whole memory."""
        own_keys, own_values = self.keys[layer], self.values[layer]
        if own_keys is None or own_values is None:
            own_keys = self.keys[layer] = self._new(keys)
            own_values = self.values[layer] = self._new(values)
        own_keys[at] = keys  # type: ignore[index]
        own_values[at] = values  # type: ignore[index]
        return own_keys, own_values

    def clear_to(self, length: int) -> None:
        """Makes the first ``length`` tokens of every slot finite, so that a masked one cannot spoil a sum.

        To be called before anything is written there.
        """
        if length > self.cleared:
            start, self.cleared = self.cleared, min(self.capacity, length + FRONTIER)
            for memory in (*self.keys, *self.values):
                if memory is not None:
                    memory[:, :, start : self.cleared] = 0

    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """The first ``length`` tokens of slot ``source`` also become those of ``targets``."""
        for memory in (*self.keys, *self.values):
            assert memory is not None
            for target in targets:
                memory[target, :, :length] = memory[source, :, :length]

    def _new(self, like: torch.Tensor) -> torch.Tensor:
        memory = like.new_empty(self.slots + 1, like.shape[-3], self.capacity, like.shape[-1])
        memory[:, :, : self.cleared] = 0
        return memory
