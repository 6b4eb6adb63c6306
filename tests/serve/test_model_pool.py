"""Loading and unloading of models, with fake engines."""

import asyncio
import threading
from types import SimpleNamespace

import pytest
from chat_templates import tokenizer

from stillhouse.errors import ModelError
from stillhouse.models import ChatTemplate, PromptEncoder, shared_context_note
from stillhouse.serve.model_pool import ModelPool


class FakeEngine:
    context_length = 8
    prompts = SimpleNamespace(context_note="of the model's own 64")
    closed = False

    async def close(self):
        self.closed = True


class Loader:
    """Loads when a test permits it; counts the engines, and how many load at once."""

    def __init__(self):
        self.may_load, self.lock = threading.Event(), threading.Lock()
        self.engines, self.loading, self.most_loading = list[FakeEngine](), 0, 0

    def __call__(self, reference):
        with self.lock:
            self.loading += 1
            self.most_loading = max(self.most_loading, self.loading)
        assert self.may_load.wait(10)
        with self.lock:
            self.loading -= 1
        if reference == "broken":
            raise ModelError("it is broken")
        self.engines.append(FakeEngine())
        return self.engines[-1]


async def use(pool, name):
    async with pool.use(name) as engine:
        return engine


def test_the_log_and_the_error_say_why_the_context_is_short(capsys):
    assert shared_context_note(8192, 8192, 41, 2**31) == ""
    note = shared_context_note(3410, 8192, 41, 2**31)
    assert note == "of the model's own 8,192: 41 conversations share 2 GiB of memory"
    loader = Loader()
    loader.may_load.set()
    asyncio.run(use(ModelPool({"a": "a"}, idle_s=0, load=loader), "a"))
    assert "context 8 tokens of the model's own 64" in capsys.readouterr().err
    prompts = PromptEncoder(tokenizer(), ChatTemplate("{{ messages }}"), 3410, 0, context_note=note)
    assert str(prompts.too_long("the text", 18031)) == (
        f"the text has 18031 tokens, the context here is 3410 tokens {note}"
    )


def test_a_client_that_leaves_does_not_end_the_loading():
    """An engine without an owner would keep its memory and its thread forever."""
    load = Loader()

    async def run_pool():
        pool = ModelPool({"a": "a"}, idle_s=0, load=load)
        for _ in range(3):
            leaving = asyncio.create_task(use(pool, "a"))
            await asyncio.sleep(0.02)
            leaving.cancel()
            await asyncio.gather(leaving, return_exceptions=True)
        staying = [asyncio.create_task(use(pool, "a")) for _ in range(2)]
        load.may_load.set()
        engines = await asyncio.gather(*staying)
        await pool.close()
        return engines

    engines = asyncio.run(run_pool())
    assert len(load.engines) == 1
    assert engines == load.engines * 2
    assert load.engines[0].closed


def test_two_models_are_loaded_one_after_the_other():
    """Two threads that first import the same modules of transformers break each other's import."""
    load = Loader()

    async def run_pool():
        pool = ModelPool({"a": "a", "b": "b"}, idle_s=0, load=load)
        both = [asyncio.create_task(use(pool, name)) for name in "ab"]
        await asyncio.sleep(0.05)
        load.may_load.set()
        await asyncio.gather(*both)
        await pool.close()

    asyncio.run(run_pool())
    assert (load.most_loading, len(load.engines)) == (1, 2)


def test_a_failed_load_is_reported_to_all_who_wait_and_tried_again():
    load = Loader()
    load.may_load.set()

    async def run_pool():
        pool = ModelPool({"a": "broken"}, idle_s=0, load=load)
        errors = await asyncio.gather(*(use(pool, "a") for _ in range(2)), return_exceptions=True)
        with pytest.raises(ModelError, match="broken"):
            await use(pool, "a")
        await pool.close()
        return errors

    assert [str(error) for error in asyncio.run(run_pool())] == ["it is broken"] * 2


def test_the_end_waits_for_a_model_that_is_being_loaded():
    load = Loader()

    async def run_pool():
        pool = ModelPool({"a": "a"}, idle_s=0, load=load)
        leaving = asyncio.create_task(use(pool, "a"))
        await asyncio.sleep(0.02)
        leaving.cancel()
        threading.Timer(0.05, load.may_load.set).start()
        await pool.close()

    asyncio.run(run_pool())
    assert [engine.closed for engine in load.engines] == [True]
