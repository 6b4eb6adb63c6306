"""`still serve --watermark`: every answer is watermarked, and no other model is served beside it."""

from __future__ import annotations

import asyncio

import pytest
from still_command import still

from stillhouse.models import Sampling
from stillhouse.serve.engines.base import GenerationRequest
from stillhouse.serve.engines.open import open_engine
from stillhouse.watermark import Mark, detect, new_key, write_key


def answers(engine, count: int, **sampling) -> list[list[int]]:
    """Token ids of some concurrent answers."""

    async def one(seed: int) -> list[int]:
        settings = Sampling(max_tokens=60, seed=seed, **sampling)
        request = GenerationRequest((5, 6, 7), settings, top_logprobs=0)
        return [token.id async for delta in engine.generate(request) for token in delta.logprobs]

    async def all_of_them() -> list[list[int]]:
        try:
            return await asyncio.gather(*map(one, range(count)))
        finally:
            await engine.close()

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "top_p": 0.95}])
def test_the_answers_of_a_marked_engine_carry_the_mark(tiny_teacher, sampling):
    mark = Mark(new_key())
    marked = answers(open_engine(str(tiny_teacher), mark), 6, **sampling)
    plain = answers(open_engine(str(tiny_teacher)), 6, **sampling)
    assert sum(map(len, marked)) > 100
    assert detect(mark, marked).p_value < 1e-9
    assert detect(mark, plain).p_value > 1e-5
    assert detect(Mark(new_key()), marked).p_value > 1e-5


@pytest.mark.parametrize("model", ["embedded:smollm2", "far=api:http://127.0.0.1:9/v1#m"])
def test_what_cannot_be_marked_is_not_served_beside_it(tiny_teacher, tmp_path, model):
    key = new_key()
    write_key(tmp_path / "mark.key", key)
    done = still("serve", str(tiny_teacher), model, "--watermark", "mark.key", "--port", "0", cwd=tmp_path)
    assert done.returncode == 2
    assert "cannot be watermarked" in done.stderr
    assert key.hex() not in done.stderr + done.stdout


def test_a_file_without_a_key_is_refused_before_anything_is_loaded(tmp_path):
    (tmp_path / "mark.key").write_text("hunter2")
    done = still("serve", "embedded:smollm2", "--watermark", "mark.key", "--port", "0", cwd=tmp_path)
    assert done.returncode == 2
    assert "64 hexadecimal digits" in done.stderr
    assert "hunter2" not in done.stderr
