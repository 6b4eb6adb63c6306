"""A model under suspicion, and what it can be made to tell.

Opened the same way whether its weights are on this machine or somebody serves it. What it can do is asked,
never guessed: an API is asked once whether it tells the log-probabilities of a given text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from stillhouse.errors import StillhouseError
from stillhouse.models import Message, Reply, Request

Prompt = Sequence[Message]
"""The turns before a text; empty where it stands alone."""
GenerateFn = Callable[[Sequence[Request]], Sequence[Reply | StillhouseError]]
"""Puts requests to a model; for each, in order, an answer or why there is none."""


@dataclass(frozen=True)
class SuspectCapabilities:
    """What a suspect is able to tell."""

    generate: bool
    logprobs: bool
    """Log-probabilities of a text that it is given."""
    weights: bool


@dataclass(frozen=True)
class TextLikelihood:
    """What a suspect thinks of one text after its prompt."""

    tokens: int
    """Of the text, in the suspect's own tokenizer, as far as its context reaches."""
    loglik: float
    """Their log-probability in nats."""
    token_logps: np.ndarray
    """That of each token, float32 [tokens]."""


class Suspect(Protocol):
    """A model that can be asked."""

    reference: str
    fingerprint: str
    """As a model's: of weights and tokenizer, or of an API's address and name."""
    can: SuspectCapabilities

    @property
    def parameters(self) -> int | None:
        """How many a model on this machine has."""
        ...

    def loglik(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[TextLikelihood | None]:
        """The log-likelihood of each text after its prompt; None where there is none (no room, refused).

        Texts that are asked together and have equal prompts cost the prompt once.
        """
        ...

    def continuations(
        self, prompts: Sequence[Prompt], beginnings: Sequence[str], lengths: Sequence[int]
    ) -> list[str | None]:
        """How it goes on after each beginning of an answer, greedily; at most so many tokens."""
        ...

    def generate(self, requests: Sequence[Request]) -> list[Reply | StillhouseError]:
        """Answers, one for each request, in order."""
        ...

    def affords(self, texts: Sequence[str]) -> bool:
        """Whether these texts can still be asked within the budget; always, without one."""
        ...

    def close(self) -> None:
        """Frees memory and connections."""
        ...
