"""Messages from threads to the event loop: none is lost, they stay in order and arrive in rounds."""

import asyncio
import threading
import time

from stillhouse.serve.engines import mailbox as mailbox_module
from stillhouse.serve.engines.mailbox import Mailbox

THREADS, MESSAGES = 8, 2000


def test_messages_of_many_threads_arrive_in_order():
    async def run():
        mailbox = Mailbox()
        queues = [mailbox.open_queue() for _ in range(THREADS)]
        threads = [
            threading.Thread(target=lambda target=target: [mailbox.send(target, n) for n in range(MESSAGES)])
            for target in queues
        ]
        for thread in threads:
            thread.start()
        received = [[await asyncio.wait_for(queue.get(), 30) for _ in range(MESSAGES)] for queue in queues]
        for thread in threads:
            thread.join()
        return received, all(queue.empty() for queue in queues)

    received, nothing_left = asyncio.run(run())
    assert received == [list(range(MESSAGES))] * THREADS
    assert nothing_left


def test_a_busy_loop_is_woken_once():
    """The first bundle wakes it; the others arrive within its rounds."""

    async def run():
        loop, wakeups = asyncio.get_running_loop(), []
        mailbox, call = Mailbox(), loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *arguments: wakeups.append(arguments) or call(*arguments)
        queue = mailbox.open_queue()
        for bundle in range(3):
            sender = threading.Thread(
                target=lambda first=bundle: [mailbox.send(queue, first) for _ in range(5)]
            )
            sender.start()
            sender.join()  # in the loop's own thread, which is busy meanwhile
            assert [await queue.get() for _ in range(5)] == [bundle] * 5
        return len(wakeups)

    assert asyncio.run(run()) == 1


def test_what_many_threads_send_arrives_once_and_in_order(monkeypatch):
    monkeypatch.setattr(mailbox_module, "ROUND_S", 0.0005)
    each, threads = 3000, 4

    async def run():
        mailbox = Mailbox()
        queues = [mailbox.open_queue() for _ in range(threads)]

        def send_all(target):
            for number in range(each):
                mailbox.send(target, number)
                if number % 100 == 0:
                    time.sleep(0.0007)  # a round may end, and the next message must open one

        senders = [threading.Thread(target=send_all, args=(queue,)) for queue in queues]
        for sender in senders:
            sender.start()
        received = [[await asyncio.wait_for(queue.get(), 10) for _ in range(each)] for queue in queues]
        return received, all(queue.empty() for queue in queues)

    received, nothing_left = asyncio.run(run())
    assert received == [list(range(each))] * threads
    assert nothing_left


def test_the_first_message_arrives_at_once_and_the_next_ones_together_in_their_round(monkeypatch):
    monkeypatch.setattr(mailbox_module, "ROUND_S", 1.0)

    async def run():
        mailbox = Mailbox()
        queue, started = mailbox.open_queue(), time.monotonic()
        mailbox.send(queue, 0)
        await queue.get()
        first = time.monotonic() - started
        for number in (1, 2, 3):
            mailbox.send(queue, number)
        received = [await queue.get()]
        second = time.monotonic() - started
        while not queue.empty():
            received.append(queue.get_nowait())
        return first, second, received

    first, second, received = asyncio.run(run())
    assert first < 0.9 < second
    assert received == [1, 2, 3]
