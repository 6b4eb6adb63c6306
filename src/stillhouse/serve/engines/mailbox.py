"""A thread-safe mailbox from worker threads into the event loop."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any

ROUND_S = 0.04
"""Seconds between two deliveries: 25 updates a second look fluent to a reader."""


class Mailbox:
    """Carries messages from threads to asyncio queues: the first at once, later ones in rounds.

    Models compute in threads of their own, because one step takes milliseconds to seconds and the event loop
    must keep serving other clients meanwhile. ``asyncio.Queue`` is not thread-safe, so only the loop itself
    may fill the queues.

    Every wake-up of the loop takes a core from the threads that compute. Delivering in rounds of ``ROUND_S``
    instead of once a token is one of the changes that cut the cost of a streamed token from 250 to 95 µs (8
    chats, ``benchmarks/serve.py --cases own``).
    """

    def __init__(self) -> None:
        self._messages: deque[tuple[asyncio.Queue[Any], Any]] = deque()  # its append and popleft are atomic
        self._loop: asyncio.AbstractEventLoop | None = None
        self._delivery_scheduled = False
        """Whether the loop will look at the messages, now or at the end of a round."""

    def open_queue(self) -> asyncio.Queue[Any]:
        """Returns a new queue of the running loop. A mailbox serves one loop."""
        self._loop = asyncio.get_running_loop()
        return asyncio.Queue()

    def send(self, queue: asyncio.Queue[Any], message: Any) -> None:
        """Sends a message to a queue, from any thread."""
        assert self._loop is not None
        self._messages.append((queue, message))
        # Without a lock: two threads may both schedule a delivery, and the second one finds nothing to do.
        if not self._delivery_scheduled:
            self._delivery_scheduled = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        if not self._messages:
            self._delivery_scheduled = False
            # A message may have arrived between the two lines above, while its sender still saw the flag set
            # and scheduled nothing. Without a second look it would wait for the next message.
            if not self._messages:
                return
            self._delivery_scheduled = True
        while self._messages:
            queue, message = self._messages.popleft()
            queue.put_nowait(message)
        assert self._loop is not None
        self._loop.call_later(ROUND_S, self._deliver)
