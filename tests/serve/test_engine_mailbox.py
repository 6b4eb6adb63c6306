"""Tokens on their way from the threads that compute to the loop: none lost, in order, in rounds."""

import asyncio
import threading
import time

from stillhouse.serve.engines import mailbox as mailbox_module
from stillhouse.serve.engines.base import TextDelta
from stillhouse.serve.engines.llama_cpp import _merge
from stillhouse.serve.engines.mailbox import Mailbox

THREADS, MESSAGES = 8, 2000


def test_letters_of_many_threads_arrive_in_order():
    async def talk():
        mailbox = Mailbox()
        queues = [mailbox.open_queue() for _ in range(THREADS)]
        threads = [
            threading.Thread(target=lambda to=to: [mailbox.send(to, n) for n in range(MESSAGES)])
            for to in queues
        ]
        for thread in threads:
            thread.start()
        heard = [[await asyncio.wait_for(queue.get(), 30) for _ in range(MESSAGES)] for queue in queues]
        for thread in threads:
            thread.join()
        return heard, all(queue.empty() for queue in queues)

    heard, nothing_left = asyncio.run(talk())
    assert heard == [list(range(MESSAGES))] * THREADS
    assert nothing_left


def test_a_loop_that_is_busy_is_called_once():
    """The first bundle calls it; the others come within its rounds, for which nobody calls."""

    async def talk():
        loop, calls = asyncio.get_running_loop(), []
        mailbox, call = Mailbox(), loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *given: calls.append(given) or call(*given)
        queue = mailbox.open_queue()
        for bundle in range(3):
            sender = threading.Thread(
                target=lambda first=bundle: [mailbox.send(queue, first) for _ in range(5)]
            )
            sender.start()
            sender.join()  # in the loop's own thread: it is busy meanwhile
            assert [await queue.get() for _ in range(5)] == [bundle] * 5
        return len(calls)

    assert asyncio.run(talk()) == 1


def test_what_many_threads_send_arrives_once_and_in_order(monkeypatch):
    monkeypatch.setattr(mailbox_module, "ROUND_S", 0.0005)
    each, threads = 3000, 4

    async def scene():
        mailbox = Mailbox()
        queues = [mailbox.open_queue() for _ in range(threads)]

        def say(to):
            for number in range(each):
                mailbox.send(to, number)
                if number % 100 == 0:
                    time.sleep(0.0007)  # a round may end, and the next letter has to open one

        senders = [threading.Thread(target=say, args=(queue,)) for queue in queues]
        for sender in senders:
            sender.start()
        heard = [[await asyncio.wait_for(queue.get(), 10) for _ in range(each)] for queue in queues]
        return heard, all(queue.empty() for queue in queues)

    heard, nothing_more = asyncio.run(scene())
    assert heard == [list(range(each))] * threads
    assert nothing_more


def test_the_first_letter_comes_at_once_and_the_next_ones_together_in_their_round(monkeypatch):
    monkeypatch.setattr(mailbox_module, "ROUND_S", 1.0)

    async def scene():
        mailbox = Mailbox()
        queue, began = mailbox.open_queue(), time.monotonic()
        mailbox.send(queue, 0)
        await queue.get()
        first = time.monotonic() - began
        for number in (1, 2, 3):
            mailbox.send(queue, number)
        heard = [await queue.get()]
        second = time.monotonic() - began
        while not queue.empty():
            heard.append(queue.get_nowait())
        return first, second, heard

    first, second, heard = asyncio.run(scene())
    assert first < 0.9 < second
    assert heard == [1, 2, 3]


def test_pieces_that_came_together_are_one_piece():
    pieces = [
        TextDelta("a", tokens=1, cached_tokens=7),
        TextDelta("", tokens=1),
        TextDelta("b", finish_reason="stop"),
    ]
    assert _merge(pieces) == TextDelta("ab", tokens=2, cached_tokens=7, finish_reason="stop")
    assert _merge(pieces[:1]) is pieces[0]
