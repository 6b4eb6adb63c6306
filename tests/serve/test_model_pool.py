"""Loading and unloading, with engines that say when."""

import asyncio
import threading

import pytest

from stillhouse.errors import ModelError
from stillhouse.serve.model_pool import ModelPool


class FakeEngine:
    context_length = 8
    closed = False

    async def close(self):
        self.closed = True


class Loader:
    """Loads when it is let; knows how many it made and how many at once."""

    def __init__(self):
        self.go, self.lock = threading.Event(), threading.Lock()
        self.made, self.now, self.most = list[FakeEngine](), 0, 0

    def __call__(self, reference):
        with self.lock:
            self.now += 1
            self.most = max(self.most, self.now)
        assert self.go.wait(10)
        with self.lock:
            self.now -= 1
        if reference == "broken":
            raise ModelError("it is broken")
        self.made.append(FakeEngine())
        return self.made[-1]


async def used(pool, name):
    async with pool.use(name) as engine:
        return engine


def test_a_client_that_leaves_does_not_end_the_loading():
    """An engine that nobody holds would keep its memory and its thread for ever."""
    load = Loader()

    async def scene():
        pool = ModelPool({"a": "a"}, idle_s=0, load=load)
        for _ in range(3):
            leaving = asyncio.create_task(used(pool, "a"))
            await asyncio.sleep(0.02)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
        staying = [asyncio.create_task(used(pool, "a")) for _ in range(2)]
        load.go.set()
        engines = await asyncio.gather(*staying)
        await pool.close()
        return engines

    engines = asyncio.run(scene())
    assert len(load.made) == 1
    assert engines == load.made * 2
    assert load.made[0].closed


def test_two_models_are_loaded_one_after_the_other():
    """Two threads that import the same parts of transformers for the first time break each other's import."""
    load = Loader()

    async def scene():
        pool = ModelPool({"a": "a", "b": "b"}, idle_s=0, load=load)
        both = [asyncio.create_task(used(pool, name)) for name in "ab"]
        await asyncio.sleep(0.05)
        load.go.set()
        await asyncio.gather(*both)
        await pool.close()

    asyncio.run(scene())
    assert (load.most, len(load.made)) == (1, 2)


def test_what_cannot_be_loaded_is_told_to_all_who_wait_and_tried_again():
    load = Loader()
    load.go.set()

    async def scene():
        pool = ModelPool({"a": "broken"}, idle_s=0, load=load)
        told = await asyncio.gather(*(used(pool, "a") for _ in range(2)), return_exceptions=True)
        with pytest.raises(ModelError, match="broken"):
            await used(pool, "a")
        await pool.close()
        return told

    assert [str(error) for error in asyncio.run(scene())] == ["it is broken"] * 2


def test_the_end_waits_for_a_model_that_is_being_loaded():
    load = Loader()

    async def scene():
        pool = ModelPool({"a": "a"}, idle_s=0, load=load)
        leaving = asyncio.create_task(used(pool, "a"))
        await asyncio.sleep(0.02)
        leaving.cancel()
        threading.Timer(0.05, load.go.set).start()
        await pool.close()

    asyncio.run(scene())
    assert [engine.closed for engine in load.made] == [True]
