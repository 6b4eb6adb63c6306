"""Adaptive limit of concurrent calls to a server: additive increase, multiplicative decrease (AIMD).

The congestion control of TCP (Chiu and Jain 1989): a round of calls without trouble adds one to the
limit, a sign of overload halves it. Overload that belongs to the same round counts once: calls that
were in flight when the limit fell were sent under the old limit and say nothing about the new one.
"""

from __future__ import annotations


class AdaptiveConcurrency:
    """The number of calls that may be in flight, between 1 and ``maximum``; it starts at ``maximum``."""

    def __init__(self, maximum: int) -> None:
        self.maximum = maximum
        self.lowest = maximum
        """The smallest limit so far."""
        self._limit = float(maximum)
        self._ignored = 0

    @property
    def limit(self) -> int:
        """Calls that may be in flight now."""
        return int(self._limit)

    def call_ended(self, *, overloaded: bool, in_flight: int) -> None:
        """Adjusts the limit after a call.

        Args:
            overloaded: the call failed, or the server asked to wait meanwhile.
            in_flight: other calls that have not ended yet.
        """
        if self._ignored > 0:
            self._ignored -= 1
        elif overloaded:
            self._limit = max(1.0, self._limit / 2)
            self.lowest = min(self.lowest, self.limit)
            self._ignored = in_flight
        else:
            self._limit = min(float(self.maximum), self._limit + 1 / self._limit)
