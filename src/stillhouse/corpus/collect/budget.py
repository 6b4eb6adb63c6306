"""The budget of a collection: limits on dollars and tokens, and what was spent.

A request starts only if the limits still hold after it has used everything reserved for it. Spending
therefore exceeds a limit at most by the error in the estimated prompt tokens of the requests in flight;
completions never take more than `max_tokens`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stillhouse.corpus.schema import Row
from stillhouse.recipe import Collect, Teacher

if TYPE_CHECKING:
    from stillhouse.models import Request

MESSAGE_TOKENS = 16
"""Tokens reserved for the chat template's marks around each message."""
BYTES_PER_TOKEN = 2
"""Bytes of prompt for which one token is reserved: half of what English needs (about 4 bytes a token)."""


@dataclass(frozen=True)
class Reserve:
    """An upper bound on what one call uses."""

    tokens: int
    cost_usd: float


class Budget:
    """Limits, spending so far, and reserves for requests in flight."""

    def __init__(self, settings: Collect, teacher: Teacher) -> None:
        self.max_cost, self.max_tokens = settings.max_cost, settings.max_total_tokens
        self.priced = teacher.price_in is not None and teacher.price_out is not None
        self._price_in, self._price_out = teacher.price_in or 0.0, teacher.price_out or 0.0
        self.prompt_tokens = self.completion_tokens = 0
        self._others_tokens, self._others_usd = 0, 0.0
        self._held = Reserve(0, 0.0)

    def cost(self, prompt_tokens: int, completion_tokens: int) -> float | None:
        """US dollars for these tokens; None if the recipe names no prices."""
        if not self.priced:
            return None
        return self._cost(prompt_tokens, completion_tokens)

    @property
    def spent_usd(self) -> float | None:
        """US dollars spent on this teacher's answers; None if the recipe names no prices."""
        return self.cost(self.prompt_tokens, self.completion_tokens)

    def estimate(self, requests: Sequence[Request]) -> Reserve:
        """An upper bound on what the requests use."""
        prompt = sum(
            MESSAGE_TOKENS + len(message["content"].encode()) // BYTES_PER_TOKEN
            for request in requests
            for message in request.messages
        )
        completion = sum(request.sampling.max_tokens for request in requests)
        return Reserve(prompt + completion, self._cost(prompt, completion))

    def exceeded_by(self, reserve: Reserve) -> str | None:
        """The recipe key of the limit that spending ``reserve`` as well could break, or None."""
        tokens = self.prompt_tokens + self.completion_tokens + self._held.tokens + reserve.tokens
        if self.max_tokens is not None and tokens + self._others_tokens > self.max_tokens:
            return "max_total_tokens"
        cost = self._cost(self.prompt_tokens, self.completion_tokens) + self._held.cost_usd + reserve.cost_usd
        cost += self._others_usd
        if self.max_cost is not None and cost > self.max_cost:
            return "max_cost"
        return None

    def hold(self, reserve: Reserve) -> None:
        """Holds ``reserve`` for a call that starts."""
        self._held = Reserve(self._held.tokens + reserve.tokens, self._held.cost_usd + reserve.cost_usd)

    def release(self, reserve: Reserve) -> None:
        """Releases the reserve of a call that ended; :meth:`spend` counts what it used."""
        self.hold(Reserve(-reserve.tokens, -reserve.cost_usd))

    def spend(self, row: Row) -> None:
        """Counts the tokens of a stored row of this teacher."""
        self.prompt_tokens += row["prompt_tokens"] or 0
        self.completion_tokens += row["completion_tokens"] or 0

    def spend_by_other_teacher(self, row: Row) -> None:
        """Counts a row of another teacher at its own cost: the limits are for all teachers together."""
        self._others_tokens += (row["prompt_tokens"] or 0) + (row["completion_tokens"] or 0)
        self._others_usd += row["cost_usd"] or 0.0

    def _cost(self, prompt_tokens: int, completion_tokens: int) -> float:
        return (prompt_tokens * self._price_in + completion_tokens * self._price_out) / 1e6
