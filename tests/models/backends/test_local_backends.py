"""torch and llama.cpp on tiny models: the same interface, templates and seeds."""

from __future__ import annotations

import asyncio

import pytest
import torch
from tiny_gguf import tiny_model, vocabulary, write_gguf

from stillhouse.errors import ContextLengthError, ModelError
from stillhouse.models import Reply, Request, Sampling, load_weights, open_model
from stillhouse.models.backends.llama_cpp import requested_threads
from stillhouse.models.backends.prompts import cut_at_stop
from stillhouse.models.chat.reasoning import split_reasoning

TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOKENS, TYPES = vocabulary()


@pytest.fixture(scope="module", params=["torch", "llama.cpp"])
def backend(request):
    return request.param


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    model = tiny_model("llama", len(TOKENS), initializer_range=0.6)
    return write_gguf(
        tmp_path_factory.mktemp("gguf") / "tiny.gguf",
        tokens=TOKENS,
        types=TYPES,
        special={"bos": len(TOKENS) - 2, "eos": len(TOKENS) - 1},
        template=TEMPLATE,
        model=model,
    )


def ask(path, backend, requests, seed=0, variables=None):
    async def run():
        model = open_model(str(path), backend=backend, seed=seed, variables=variables)
        try:
            return await model.generate(requests), model
        finally:
            await model.close()

    return asyncio.run(run())


def request(text, name="r", **sampling):
    return Request(name, [{"role": "user", "content": text}], Sampling(**{"max_tokens": 12} | sampling))


def test_greedy_starts_with_the_likeliest_token_after_the_templates_prompt(path, backend):
    weights = load_weights(str(path))
    prompts = ["the Hi", "you", "123", "a b c", "Hi Hi Hi", "x", "in the", "er"]
    replies, model = ask(path, backend, [request(p, name=p, temperature=0) for p in prompts])
    assert model.template_hash == weights.template.hash
    assert model.fingerprint == weights.fingerprint
    compared = 0
    for prompt, reply in zip(prompts, replies, strict=True):
        ids = weights.template.encode_prompt(weights.tokenizer, [{"role": "user", "content": prompt}])
        assert reply.prompt_tokens == len(ids)
        with torch.no_grad():
            likeliest = weights.model(torch.tensor([ids])).logits[0, -1].topk(2)
        text = weights.tokenizer.decode(likeliest.indices[:1])
        if likeliest.values[0] - likeliest.values[1] > 0.3 and text.isascii():  # runtimes differ on near-ties
            assert reply.text.startswith(text)
            compared += 1
    assert compared >= 2


def test_order_seeds_and_lengths(path, backend):
    requests = [request("the " * (1 + n % 4), name=str(n), seed=n % 3, max_tokens=5 + n) for n in range(9)]
    first, _ = ask(path, backend, requests)
    again, _ = ask(path, backend, requests)
    assert [reply.text for reply in first] == [reply.text for reply in again]
    for reply, sent in zip(first, requests, strict=True):
        assert reply.completion_tokens <= sent.sampling.max_tokens
        assert reply.finish_reason in ("stop", "length")
        if reply.finish_reason == "length":
            assert reply.completion_tokens == sent.sampling.max_tokens
    assert len({reply.text for reply in first}) > 1


def test_without_a_seed_the_request_and_the_models_seed_decide(path, backend):
    requests = [request("Hi", name="a"), request("Hi", name="b")]
    one, _ = ask(path, backend, requests, seed=1)
    same, _ = ask(path, backend, requests[::-1], seed=1)
    other, _ = ask(path, backend, requests, seed=2)
    assert [r.text for r in one] == [r.text for r in same[::-1]]
    assert one[0].text != one[1].text
    assert [r.text for r in one] != [r.text for r in other]


def test_a_prompt_longer_than_the_context_fails_alone(path, backend):
    results, model = ask(path, backend, [request("Hi"), request("x" * 300, name="long"), request("the")])
    assert isinstance(results[0], Reply)
    assert isinstance(results[1], ContextLengthError)
    assert "long" in str(results[1])
    assert str(model.context_length) in str(results[1])
    assert isinstance(results[2], Reply)


def test_the_context_ends_an_answer(path, backend):
    [reply], model = ask(path, backend, [request("x" * 200, max_tokens=4000)])
    assert isinstance(reply, Reply)
    assert reply.prompt_tokens + reply.completion_tokens <= model.context_length


def test_a_message_that_the_template_refuses_fails_alone(path, backend):
    bad = Request("bad", [{"role": "user", "content": None}], Sampling(max_tokens=3))
    worse = Request("worse", [{"content": "no role"}], Sampling(max_tokens=3))
    results, _ = ask(path, backend, [request("Hi"), bad, worse])
    assert isinstance(results[0], Reply)
    assert not [result for result in results if not isinstance(result, (Reply, ModelError))]


def test_a_variable_reaches_the_template_or_is_refused(tmp_path, path, backend):
    template = TEMPLATE.replace(
        "assistant\n", "assistant\n{% if enable_thinking is false %}the the{% endif %}"
    )
    reading = write_gguf(
        tmp_path / "reads.gguf",
        tokens=TOKENS,
        types=TYPES,
        special={"bos": len(TOKENS) - 2, "eos": len(TOKENS) - 1},
        template=template,
        model=tiny_model("llama", len(TOKENS), initializer_range=0.6),
    )
    weights = load_weights(str(reading))
    question = request("Hi", temperature=0)
    expected = [
        len(weights.template.encode_prompt(weights.tokenizer, question.messages, **variables))
        for variables in ({}, {"enable_thinking": False})
    ]
    assert expected[0] < expected[1]
    for length, variables in zip(expected, (None, {"enable_thinking": False}), strict=True):
        [reply], _ = ask(reading, backend, [question], variables=variables)
        assert isinstance(reply, Reply)
        assert reply.prompt_tokens == length
    with pytest.raises(ModelError, match="does not read `enable_thinking`"):
        ask(path, backend, [question], variables={"enable_thinking": False})


def test_llama_cpp_prints_nothing(path, capfd):
    ask(path, "llama.cpp", [request("Hi")])
    captured = capfd.readouterr()
    assert captured.out == ""
    assert captured.err == ""


def test_answers_of_a_sliding_window_model_do_not_depend_on_the_batch(tmp_path):
    path = write_gguf(
        tmp_path / "gemma.gguf",
        tokens=TOKENS,
        types=TYPES,
        special={"bos": len(TOKENS) - 2, "eos": len(TOKENS) - 1},
        template=TEMPLATE,
        model=tiny_model("gemma3", len(TOKENS)),
        architecture="gemma3",
    )
    requests = [request("the Hi", seed=1), request("Hi", seed=2), request("Hi", temperature=0)]
    first, _ = ask(path, "torch", requests)
    again, _ = ask(path, "torch", requests[::-1])
    assert [r.text for r in first] == [r.text for r in again[::-1]]


def test_a_model_without_a_template_is_warned_about(tmp_path, capfd):
    path = write_gguf(tmp_path / "base.gguf", tokens=TOKENS, types=TYPES, special={"eos": len(TOKENS) - 1})
    [reply], _ = ask(path, "torch", [request("Hi", max_tokens=2)])
    assert isinstance(reply, Reply)
    assert "no chat template" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("text", "inside", "answer", "reasoning"),
    [
        ("plain", False, "plain", None),
        ("<think>\nhm\n</think>\n\nyes", False, "yes", "hm"),
        ("hm\n</think>\n\nyes", True, "yes", "hm"),
        ("<think>hm</think>yes", True, "yes", "hm"),
        ("<think>never ends", False, "", "never ends"),
        ("never ends", True, "", "never ends"),
        ("a <think>b</think>", False, "a <think>b</think>", None),
    ],
)
def test_reasoning_is_kept_apart(text, inside, answer, reasoning):
    assert split_reasoning(text, inside=inside) == (answer, reasoning)


def test_stops():
    assert cut_at_stop("abcSTOPdEND", ("END", "STOP")) == ("abc", True)
    assert cut_at_stop("abc", ("END",)) == ("abc", False)


@pytest.mark.parametrize(
    ("value", "threads"), [("3", 3), ("2,1", 2), ("", None), ("0", None), ("many", None), (None, None)]
)
def test_llama_keeps_to_omp_num_threads(monkeypatch, value, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if value is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert requested_threads() == threads
