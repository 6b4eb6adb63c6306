"""The interface of a suspect: scoring, continuing and answering.

It is the same for weights on this machine and for an API. Capabilities are measured, never guessed: one
request to an API shows whether it returns the log-probabilities of a given text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from stillhouse.errors import StillhouseError
from stillhouse.models import Message, Reply, Request

Prompt = Sequence[Message]
"""The turns before a text; empty for a text without a prompt."""
GenerateFn = Callable[[Sequence[Request]], Sequence[Reply | StillhouseError]]
"""Answers requests, in order; an error takes the place of an answer that failed."""


@dataclass(frozen=True)
class SuspectCapabilities:
    """What a suspect supports."""

    generate: bool
    logprobs: bool
    """Log-probabilities of a given text."""
    weights: bool


@dataclass(frozen=True)
class TextLikelihood:
    """The log-probability of one text after its prompt."""

    tokens: int
    """Of the text, in the suspect's own tokenizer, as far as its context reaches."""
    loglik: float
    """Their log-probability in nats."""
    token_logps: np.ndarray
    """That of each token, float32 [tokens]."""


class Suspect(Protocol):
    """A model that can be queried."""

    reference: str
    fingerprint: str
    """As of a model: of weights and tokenizer, or of an API's address and name."""
    can: SuspectCapabilities

    @property
    def parameters(self) -> int | None:
        """Number of parameters of a model on this machine."""
        ...

    def loglik(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[TextLikelihood | None]:
        """The log-likelihood of each text after its prompt; None if it has none (no context left, refused).

        Texts of one call with equal prompts cost the prompt once.
        """
        ...

    def continuations(
        self, prompts: Sequence[Prompt], beginnings: Sequence[str], lengths: Sequence[int]
    ) -> list[str | None]:
        """The greedy continuation of each beginning of an answer, of at most so many tokens."""
        ...

    def generate(self, requests: Sequence[Request]) -> list[Reply | StillhouseError]:
        """Answers, one for each request, in order."""
        ...

    def affords(self, texts: Sequence[str]) -> bool:
        """Whether the budget suffices for these texts; always True without one."""
        ...

    def close(self) -> None:
        """Frees memory and connections."""
        ...
