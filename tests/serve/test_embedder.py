"""A GGUF model is opened again for its first embedding, and that memory is freed when idle."""

import asyncio

import pytest
from tool_models import make_tool_model

from stillhouse.serve.engines import llama_cpp
from stillhouse.serve.engines.open import open_engine


def test_it_is_freed_when_idle_and_opened_again(tmp_path, monkeypatch):
    _, file = make_tool_model(tmp_path / "model")
    monkeypatch.setattr(llama_cpp, "EMBEDDER_IDLE_S", 0.2)

    async def use():
        engine = open_engine(str(file))
        assert engine._model._embedder is None
        (first,) = await engine.embed([(5, 6, 7)])
        assert engine._model._embedder is not None
        for _ in range(100):
            await asyncio.sleep(0.05)
            if engine._model._embedder is None:
                break
        else:
            raise AssertionError("it is never freed")
        (again,) = await engine.embed([(5, 6, 7)])
        await engine.close()
        return first, again

    first, again = asyncio.run(use())
    assert first == pytest.approx(again) and sum(x * x for x in first) == pytest.approx(1, abs=1e-4)
