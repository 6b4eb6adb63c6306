"""The key-value cache of running sequences: one slot for each sequence, allocated once.

One extra slot holds the prompt whose samples did not all find a free slot at once. Nothing is moved when the
batch changes, except that the last sequence takes the slot of one that leaves.

Shapes: S slots, 2H heads (first those of the keys, then as many of the values), T tokens, D width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

FRONTIER = 64  # tokens whose memory is cleared at a time


class KeyValues:
    """Keys and values [S, 2H, T, D] of every layer; beyond a sequence's length they are finite, not zero."""

    def __init__(self, layers: int, slots: int, capacity: int) -> None:
        self.slots, self.capacity = slots, capacity
        self.spare = slots
        self.cleared = 0
        self.layers: list[torch.Tensor | None] = [None] * layers

    def write(self, layer: int, at: tuple[object, ...], pairs: torch.Tensor) -> None:
        """Stores keys and values at an index of [S, 2H, T, D]."""
        memory = self.layers[layer]
        if memory is None:
            # Only the first keys and values tell the number of heads, the dtype and the device.
            memory = self.layers[layer] = self._allocate(pairs)
        memory[at] = pairs  # type: ignore[index]

    def append(self, layer: int, rows_R: torch.Tensor, pairs: torch.Tensor) -> torch.Tensor:
        """Stores the keys and values [B, 2H, D] of one more token of B sequences; returns the whole layer.

        Args:
            rows_R: from :meth:`rows`, the same for all layers.
        """
        memory = self.layers[layer]
        assert memory is not None
        memory.view(-1, memory.shape[-1]).index_copy_(0, rows_R, pairs.reshape(-1, pairs.shape[-1]))
        return memory

    def rows(self, lengths_B: torch.Tensor) -> torch.Tensor:
        """Rows [B · 2H] for the next token of the first B slots, in a layer viewed as rows of D values."""
        memory = next(memory for memory in self.layers if memory is not None)
        slots, heads, capacity, _ = memory.shape
        starts = torch.arange(slots * heads, device=lengths_B.device).view(slots, heads) * capacity
        return (starts[: len(lengths_B)] + lengths_B[:, None]).flatten()

    def clear_to(self, length: int) -> None:
        """Makes the first ``length`` tokens of every slot finite. Call it before writing there.

        A mask gives unused tokens the weight 0, but uninitialised memory can hold NaN, and 0 · NaN is NaN.
        """
        if length > self.cleared:
            start, self.cleared = self.cleared, min(self.capacity, length + FRONTIER)
            for memory in self.layers:
                if memory is not None:
                    memory[:, :, start : self.cleared] = 0

    def copy(self, source: int, targets: Sequence[int], length: int) -> None:
        """Copies the first ``length`` tokens of slot ``source`` to the slots ``targets``."""
        for memory in self.layers:
            assert memory is not None
            for target in targets:
                memory[target, :, :length] = memory[source, :, :length]

    def _allocate(self, prompt: torch.Tensor) -> torch.Tensor:
        """A layer's memory, like its first keys and values, those of a prompt [2H, T, D]."""
        heads, _, width = prompt.shape
        # Empty, not zeros: memory that is never touched is never committed by the operating system.
        memory = prompt.new_empty(self.slots + 1, heads, self.capacity, width)
        memory[:, :, : self.cleared] = 0
        return memory
