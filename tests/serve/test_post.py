"""Letters from threads to queues of the event loop: all arrive, in order, with few calls to the loop."""

import asyncio
import threading

from stillhouse.serve.engines import _Post

THREADS, LETTERS = 8, 2000


def test_letters_of_many_threads_arrive_in_order():
    async def talk():
        post = _Post()
        queues = [post.queue() for _ in range(THREADS)]
        threads = [
            threading.Thread(target=lambda to=to: [post.send(to, n) for n in range(LETTERS)]) for to in queues
        ]
        for thread in threads:
            thread.start()
        heard = [[await asyncio.wait_for(queue.get(), 30) for _ in range(LETTERS)] for queue in queues]
        for thread in threads:
            thread.join()
        return heard, all(queue.empty() for queue in queues)

    heard, nothing_left = asyncio.run(talk())
    assert heard == [list(range(LETTERS))] * THREADS
    assert nothing_left


def test_a_loop_that_is_busy_is_called_once():
    async def talk():
        loop, calls = asyncio.get_running_loop(), []
        post, call = _Post(), loop.call_soon_threadsafe
        loop.call_soon_threadsafe = lambda *given: calls.append(given) or call(*given)
        queue = post.queue()
        for bundle in range(3):
            sender = threading.Thread(target=lambda first=bundle: [post.send(queue, first) for _ in range(5)])
            sender.start()
            sender.join()  # in the loop's own thread: it is busy meanwhile
            assert [await queue.get() for _ in range(5)] == [bundle] * 5
        return len(calls)

    assert asyncio.run(talk()) == 3
