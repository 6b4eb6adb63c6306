"""Changes to the logits of one answer that a request asks for: penalties of repeated tokens, and biases.

Shapes: V vocabulary.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class LogitPenalties:
    """Penalties and biases of one answer. They apply before the temperature.

    Log-probabilities are reported without them.
    """

    repetition: float = 1.0
    """Divides positive logits, and multiplies negative ones, of every token in the prompt or the answer
    (Keskar et al. 2019, "CTRL", section 4.1, as in transformers); 1 changes nothing."""
    presence: float = 0.0
    """Subtracted from the logits of tokens that are in the answer (not the prompt), as in the OpenAI API."""
    frequency: float = 0.0
    """Subtracted once for each time that the token is in the answer."""
    bias: tuple[tuple[int, float], ...] = ()
    """Token ids and what is added to their logits."""

    @property
    def active(self) -> bool:
        """Whether anything changes."""
        return self.repetition != 1.0 or self.presence != 0 or self.frequency != 0 or bool(self.bias)

    def apply(self, logits_V: torch.Tensor, prompt_ids: Collection[int], answer_ids: Sequence[int]) -> None:
        """Changes the logits of the next token in place.

        Args:
            prompt_ids: ids that occur in the prompt.
            answer_ids: the answer so far.
        """
        import torch  # not above: llama.cpp's requests carry these settings without torch

        device = logits_V.device
        if self.repetition != 1.0 and (seen := {*prompt_ids, *answer_ids}):
            seen_ids = torch.tensor(sorted(seen), device=device)
            logits = logits_V[seen_ids]
            logits_V[seen_ids] = torch.where(logits > 0, logits / self.repetition, logits * self.repetition)
        if answer_ids and (self.presence or self.frequency):
            ids, counts = torch.tensor(answer_ids, device=device).unique(return_counts=True)
            logits_V[ids] -= self.presence + self.frequency * counts.to(logits_V.dtype)
        if self.bias:
            ids, biases = zip(*self.bias, strict=True)
            logits_V[torch.tensor(ids, device=device)] += torch.tensor(
                biases, device=device, dtype=logits_V.dtype
            )


NO_PENALTIES = LogitPenalties()
