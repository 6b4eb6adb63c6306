"""Retries remote requests. Nothing else in the package does.

Exponential backoff with equal jitter (half the delay is fixed, half random; Brooker 2015, "Exponential
Backoff And Jitter"). A server's own Retry-After takes precedence. The caller decides which failures are
temporary.
"""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import random
from collections.abc import Awaitable, Callable
from typing import TypeVar

from stillhouse.errors import ApiError

T = TypeVar("T")

FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 60.0
LONGEST_WAIT_S = 600.0
"""A longer Retry-After than this is an error."""


class TemporaryError(Exception):
    """A failure that a retry can fix.

    Args:
        what: description for the final message.
        wait_s: seconds from the server's Retry-After; None without one.
        pushback: whether the server asks to slow down.
    """

    def __init__(self, what: str, *, wait_s: float | None = None, pushback: bool = False) -> None:
        super().__init__(what)
        self.what, self.wait_s, self.pushback = what, wait_s, pushback


async def with_retries(
    call: Callable[[], Awaitable[T]],
    *,
    retries: int,
    jitter: random.Random,
    on_pushback: Callable[[], None],
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> T:
    """The result of ``call``, with up to ``1 + retries`` attempts.

    Raises:
        ApiError: every attempt failed, or the server asks for too long a wait. The message holds the last
            failure.
    """
    for attempt in range(retries + 1):
        try:
            return await call()
        except TemporaryError as error:
            if error.pushback:
                on_pushback()
            # Rate limits of a day end the run with a message rather than with a sleeping process.
            if error.wait_s is not None and error.wait_s > LONGEST_WAIT_S:
                raise ApiError(
                    f"{error.what}; it asks to wait {error.wait_s:.0f} s",
                    hint="Try again after that time.",
                ) from error
            if attempt == retries:
                raise ApiError(
                    f"{error.what}, also after {retries} {'retry' if retries == 1 else 'retries'}",
                    hint="Check the address, or try again later.",
                ) from error
            await sleep(delay(attempt, error.wait_s, jitter))
    raise AssertionError("unreachable")


def delay(attempt: int, wait_s: float | None, jitter: random.Random) -> float:
    """Seconds until the next attempt; never less than the server asks for."""
    backoff = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2**attempt)
    if wait_s is not None:
        return wait_s + jitter.random() * min(
            1.0, backoff
        )  # so that clients do not return all at the same instant
    return backoff / 2 * (1 + jitter.random())


def retry_after(value: str | None, now: datetime.datetime) -> float | None:
    """Seconds of a Retry-After header: a number, or an HTTP date (RFC 9110, 10.2.3).

    Args:
        now: with a time zone.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = (email.utils.parsedate_to_datetime(value) - now).total_seconds()
        except (ValueError, TypeError):
            return None
    return max(0.0, seconds) if seconds < float("inf") else None
