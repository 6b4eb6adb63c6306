"""The schedule of retries, on a fake clock."""

from __future__ import annotations

import asyncio
import datetime
import random

import pytest
from hypothesis import given, strategies as st

from stillhouse.errors import ApiError, AuthenticationError
from stillhouse.models.backends.retry import TemporaryError, delay, retry_after, with_retries

NOW = datetime.datetime(2026, 11, 23, 12, 0, 0, tzinfo=datetime.UTC)


def run(failures, retries=5):
    """The outcome of a call that first fails in these ways, and its pauses."""
    slept, left = [], list(failures)

    async def call():
        if left:
            raise left.pop(0)
        return "done"

    async def sleep(seconds):
        slept.append(seconds)

    async def go():
        return await with_retries(
            call, retries=retries, jitter=random.Random(0), on_pushback=lambda: None, sleep=sleep
        )

    return asyncio.run(go()), slept


def test_delays_double_and_are_never_below_half():
    outcome, slept = run([TemporaryError("x")] * 5)
    assert outcome == "done"
    for attempt, seconds in enumerate(slept):
        assert 0.25 * 2**attempt <= seconds <= 0.5 * 2**attempt


def test_the_same_seed_gives_the_same_delays():
    assert run([TemporaryError("x")] * 4) == run([TemporaryError("x")] * 4)


@given(st.integers(0, 40), st.none() | st.floats(0, 600), st.integers())
def test_no_delay_is_shorter_than_asked_or_longer_than_a_minute_more(attempt, wait, seed):
    seconds = delay(attempt, wait, random.Random(seed))
    assert (wait or 0) <= seconds <= (wait or 0) + 60
    assert seconds > 0 or wait == 0


def test_an_error_of_another_kind_passes_through():
    with pytest.raises(AuthenticationError):
        run([TemporaryError("x"), AuthenticationError("no")])


def test_giving_up():
    with pytest.raises(ApiError, match="busy, also after 2 retries"):
        run([TemporaryError("busy")] * 9, retries=2)
    with pytest.raises(ApiError, match=r"busy, also after 1 retry\b") as caught:
        run([TemporaryError("busy")] * 9, retries=1)
    assert "resume" not in (caught.value.hint or "")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None),
        ("0", 0.0),
        ("1.5", 1.5),
        ("-3", 0.0),
        ("Mon, 23 Nov 2026 12:00:30 GMT", 30.0),
        ("Mon, 23 Nov 2026 11:00:00 GMT", 0.0),
        ("soon", None),
        ("inf", None),
        ("nan", None),
        ("", None),
    ],
)
def test_retry_after(value, seconds):
    assert retry_after(value, NOW) == seconds
