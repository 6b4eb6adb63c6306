"""How many calls may be under way: additive increase, multiplicative decrease.

The rule of TCP (Chiu and Jain 1989): after each round without trouble one call more,
after trouble half as many. Trouble that belongs to the same round counts once, since
calls that were already under way say nothing about the lower number.
"""

from __future__ import annotations


class Pace:
    """The number of calls that may be under way, between 1 and ``most``; it starts at ``most``."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.lowest = most
        self._limit = float(most)
        self._grace = 0

    @property
    def limit(self) -> int:
        """Calls that may be under way now."""
        return int(self._limit)

    def ended(self, *, trouble: bool, under_way: int) -> None:
        """A call ended, with ``under_way`` others still going on.

        Args:
            trouble: it failed, or the other side asked for patience meanwhile.
        """
        if self._grace > 0:
            self._grace -= 1
        elif trouble:
            self._limit = max(1.0, self._limit / 2)
            self.lowest = min(self.lowest, self.limit)
            self._grace = under_way
        else:
            self._limit = min(float(self.most), self._limit + 1 / self._limit)
