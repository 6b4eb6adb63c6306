"""The token budget of an API: what was spent, what is under way, and what a text is likely to cost."""

from __future__ import annotations

from typing import Any

TOKENS_PER_BYTE = 0.5
"""The cost of a text before any answer shows the true one: twice what English needs."""


class TokenBudget:
    """Counts tokens against a limit.

    Texts cost as many tokens a byte as those that were read before. An answer costs its text, its longest
    length, and what the server's chat template adds.

    Args:
        limit: tokens in all; None is no limit.
    """

    def __init__(self, limit: int | None) -> None:
        self.limit, self.spent = limit, 0
        self._reserved = 0.0
        self._text_tokens, self._text_bytes = 0, 0
        self._template_tokens: float | None = None
        """Tokens that the server adds around a conversation; None before the first answer."""

    @property
    def must_measure_answers(self) -> bool:
        """Whether the cost of an answer is needed and still unknown."""
        return self.limit is not None and self._template_tokens is None

    def allows(self, cost: float) -> bool:
        """Whether ``cost`` fits beside what was spent and what is under way."""
        return self.limit is None or self.spent + self._reserved + cost <= self.limit

    def text_cost(self, text: str) -> float:
        """The expected tokens of a text."""
        rate = self._text_tokens / self._text_bytes if self._text_bytes else TOKENS_PER_BYTE
        return len(text.encode()) * rate

    def answer_cost(self, text: str, max_tokens: int) -> float:
        """The expected tokens of a conversation of ``text`` and an answer of up to ``max_tokens``."""
        return TOKENS_PER_BYTE * len(text.encode()) + (self._template_tokens or 0) + max_tokens

    def reserve(self, cost: float) -> None:
        """Sets ``cost`` aside for a request under way."""
        self._reserved += cost

    def release(self, cost: float | None = None) -> None:
        """Gives a reservation back; None gives all of them back."""
        self._reserved = 0.0 if cost is None else self._reserved - cost

    def record(self, line: dict[str, Any]) -> None:
        """Counts the tokens of an answer, given as its journal line."""
        self.spent += line["tokens"]
        if "reply" in line:
            around = line["reply"]["prompt_tokens"] - TOKENS_PER_BYTE * line["bytes"]
            self._template_tokens = max(self._template_tokens or 0.0, around)
        else:
            self._text_tokens += line["tokens"]
            self._text_bytes += line["bytes"]
