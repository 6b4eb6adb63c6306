"""The server as its clients see it: the official client with llama.cpp and PyTorch, and abuse."""

import asyncio
import base64
import json
import math
import signal
import socket
import struct
import time
import urllib.error
import urllib.request

import openai
import pytest
import torch
from running_server import RunningServer

from stillhouse.models import cpu_has_bfloat16, load_weights

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def server(tiny_teacher):
    running = RunningServer("embedded:smollm2", f"tiny={tiny_teacher}", options=["--queue", "40"])
    yield running
    status, log = running.stop()
    assert status == 0
    assert "Traceback" not in log and "rror" not in log, log


BOTH = pytest.mark.parametrize("model", ["smollm2", "tiny"])
HELLO = [{"role": "user", "content": "Say hello."}]


def test_models_are_listed_in_order(server):
    assert [model.id for model in server.client.models.list()] == ["smollm2", "tiny"]
    assert server.client.models.retrieve("tiny").owned_by == "stillhouse"


@BOTH
def test_a_chat_whole_and_streamed_is_the_same(server, model):
    options = {"model": model, "messages": HELLO, "max_tokens": 12, "temperature": 0, "n": 2, "seed": 3}
    whole = server.client.chat.completions.create(**options)
    assert [choice.index for choice in whole.choices] == [0, 1]
    assert whole.choices[0].message.content == whole.choices[1].message.content
    assert whole.usage.completion_tokens <= 24
    texts, reasons, usage = {0: "", 1: ""}, {}, None
    for chunk in server.client.chat.completions.create(
        **options, stream=True, stream_options={"include_usage": True}
    ):
        usage = chunk.usage or usage
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
            reasons[choice.index] = choice.finish_reason
    assert list(texts.values()) == [choice.message.content for choice in whole.choices]
    assert list(reasons.values()) == [choice.finish_reason for choice in whole.choices]
    assert usage.completion_tokens == whole.usage.completion_tokens
    assert usage.prompt_tokens == whole.usage.prompt_tokens


@BOTH
def test_a_seed_repeats_and_another_differs(server, model):
    def say(seed):
        reply = server.client.chat.completions.create(
            model=model, messages=HELLO, max_tokens=16, temperature=1.5, seed=seed
        )
        return reply.choices[0].message.content

    assert say(1) == say(1)
    assert len({say(seed) for seed in range(4)}) > 1


@BOTH
def test_a_stop_ends_the_answer_before_itself(server, model):
    options = {"model": model, "messages": HELLO, "max_tokens": 16, "temperature": 0}
    whole = server.client.chat.completions.create(**options).choices[0].message.content
    stop = whole[3:5]
    reply = server.client.chat.completions.create(**options, stop=[stop]).choices[0]
    assert reply.message.content == whole[: whole.index(stop)]
    assert reply.finish_reason == "stop"


@BOTH
def test_log_probabilities_of_a_chat(server, model):
    reply = server.client.chat.completions.create(
        model=model, messages=HELLO, max_tokens=5, temperature=0, logprobs=True, top_logprobs=3
    ).choices[0]
    assert len(reply.logprobs.content) == 5
    text = b"".join(bytes(token.bytes) for token in reply.logprobs.content)
    if model == "smollm2":  # the other model's random tokens are not whole characters
        assert text.decode() == reply.message.content
    for token in reply.logprobs.content:
        tops = [top.logprob for top in token.top_logprobs]
        assert len(tops) == 3 and tops == sorted(tops, reverse=True)
        assert token.logprob == pytest.approx(tops[0])  # greedy sampling picks the likeliest
        assert sum(map(math.exp, tops)) <= 1 + 1e-6


def test_echo_gives_the_prompt_s_own_log_probabilities(server, tiny_teacher):
    weights = load_weights(str(tiny_teacher), dtype="bfloat16" if cpu_has_bfloat16() else "float32")
    text = "Once upon a time there was"
    ids = weights.tokenizer.encode(text)
    with torch.inference_mode():
        logp_TV = weights.model(torch.tensor([ids])).logits[0].float().log_softmax(-1)
    reply = server.client.completions.create(
        model="tiny", prompt=ids, max_tokens=0, echo=True, logprobs=2
    ).choices[0]
    assert reply.text == weights.tokenizer.decode(ids)
    assert reply.logprobs.token_logprobs[0] is None
    expected = [logp_TV[index, token].item() for index, token in enumerate(ids[1:])]
    assert reply.logprobs.token_logprobs[1:] == pytest.approx(expected, abs=0.08)
    assert len(reply.logprobs.tokens) == len(reply.logprobs.text_offset) == len(ids)
    with pytest.raises(openai.BadRequestError, match="log-probabilities of a prompt"):
        server.client.completions.create(model="smollm2", prompt="Hi", max_tokens=1, echo=True, logprobs=1)


@BOTH
def test_completions_of_several_prompts(server, model):
    reply = server.client.completions.create(
        model=model, prompt=["The sky is", "One, two,"], max_tokens=4, temperature=0, n=2
    )
    texts = [choice.text for choice in reply.choices]
    assert [choice.index for choice in reply.choices] == [0, 1, 2, 3]
    assert texts[0] == texts[1] and texts[2] == texts[3]


@BOTH
def test_embeddings_are_of_length_one_and_in_both_forms(server, model):
    reply = server.client.embeddings.create(model=model, input=["a cat", "a dog"], encoding_format="float")
    for row in reply.data:
        assert sum(x * x for x in row.embedding) == pytest.approx(1, abs=1e-3)
    packed = server.client.embeddings.with_raw_response.create(
        model=model, input="a cat", encoding_format="base64"
    )
    raw = base64.b64decode(json.loads(packed.text)["data"][0]["embedding"])
    values = struct.unpack(f"<{len(raw) // 4}f", raw)
    assert values == pytest.approx(reply.data[0].embedding, abs=0.02)
    with pytest.raises(openai.BadRequestError, match="dimensions cannot be chosen"):
        server.client.embeddings.create(model=model, input="x", dimensions=8)


@BOTH
def test_an_answer_by_a_schema(server, model):
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 8}, "age": {"type": "integer", "maximum": 99}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    response_format = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
    options = {"messages": [{"role": "user", "content": "A person as JSON."}], "model": model}
    choices = server.client.chat.completions.create(
        **options, max_tokens=160, n=2, seed=1, response_format=response_format
    ).choices
    for choice in choices:
        person = json.loads(choice.message.content)
        assert set(person) == {"name", "age"} and len(person["name"]) <= 8 and person["age"] <= 99
        assert choice.finish_reason == "stop"
    cut = server.client.chat.completions.create(
        **options, max_tokens=4, response_format=response_format
    ).choices[0]
    assert cut.message.content.startswith("{") and cut.finish_reason == "length"


@BOTH
@pytest.mark.parametrize(
    ("schema", "message"),
    [({"type": "strin"}, "strin"), ({"$ref": "#/nope"}, "/nope"), ({"uniqueItems": True}, "uniqueItems")],
)
def test_a_schema_that_cannot_be_followed_is_refused(server, model, schema, message):
    response_format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        server.client.chat.completions.create(model=model, messages=HELLO, response_format=response_format)
    assert caught.value.body["param"] == "response_format.json_schema.schema"


def test_errors_have_the_api_s_shape_and_status(server):
    chat = server.client.chat.completions.create
    with pytest.raises(openai.NotFoundError, match="there is no model 'gone' here; there is smollm2, tiny"):
        chat(model="gone", messages=HELLO)
    with pytest.raises(openai.BadRequestError, match="temperature") as caught:
        chat(model="tiny", messages=HELLO, temperature=9)
    assert caught.value.body["param"] == "temperature"
    with pytest.raises(openai.BadRequestError, match=r"\d+ tokens, the model's context \d+") as caught:
        chat(model="tiny", messages=[{"role": "user", "content": "word " * 20_000}])
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError, match="only content parts of type text"):
        chat(model="tiny", messages=[{"role": "user", "content": [{"type": "image_url"}]}])


def raw(server, path="/v1/chat/completions", body=b"{}", method="POST", **headers):
    request = urllib.request.Request(server.address + path, data=body, method=method)
    for name, value in {"content-type": "application/json", **headers}.items():
        request.add_header(name.replace("_", "-"), value)
    try:
        with urllib.request.urlopen(request, timeout=30) as reply:
            return reply.status, dict(reply.headers), reply.read()
    except urllib.error.HTTPError as error:
        return error.code, dict(error.headers), error.read()


@pytest.mark.parametrize(
    ("body", "headers", "status"),
    [
        (b"{", {}, 400),
        (b"[]", {}, 400),
        (b'"x"', {}, 400),
        (b"", {}, 400),
        (b"\xff\xfe", {}, 400),
        (b'{"model": 3, "messages": []}', {}, 400),
        (b'{"model": "tiny", "messages": [{"role": "king", "content": "x"}]}', {}, 400),
        (b'{"a":' * 50_000, {}, 400),
        (b"{}", {"content_type": "text/plain"}, 415),
        (b"{}", {"origin": "http://evil.example"}, 403),
        (b"{}", {"host": "evil.example"}, 421),
        (b"{}", {"origin": "null"}, 403),
        (b"x" * (9 * 2**20), {}, 413),
    ],
)  # fmt: skip
def test_bad_requests_are_refused_in_the_api_s_form(server, body, headers, status):
    try:
        got, _, answer = raw(server, body=body, **headers)
    except (BrokenPipeError, ConnectionResetError, urllib.error.URLError):
        assert status == 413  # refused before the whole body was sent
        return
    assert got == status
    assert set(json.loads(answer)["error"]) == {"message", "type", "param", "code"}


@pytest.mark.parametrize(
    "path",
    [
        "/page/../app.py", "/page/%2e%2e/app.py", "/page/..%2fapp.py", "/page/%2e%2e%2fapp.py", "/etc/passwd",
        "/page/..%5capp.py", "/page/%252e%252e%252fapp.py", "/page//etc/passwd", "/page/%2fetc%2fpasswd",
        "/page/index.html%00.js", "/page/%c0%ae%c0%ae/app.py", "/page/", "/page/..", "//etc/passwd",
        "/v1/models/../../../etc/passwd", "/v1/models/%2fetc%2fpasswd", "/v1/models/..%2ftiny",
    ],
)  # fmt: skip
def test_no_path_leads_out_of_the_page(server, path):
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
        reply = connection.makefile("rb").read()
    assert b" 404 " in reply.split(b"\r\n")[0]
    assert b"root:" not in reply and b"import" not in reply


@pytest.mark.parametrize(
    "model", ["/etc", "../tiny", "tiny/../tiny", "%2e%2e%2ftiny", "embedded:smollm2", "hub:a/b", "tiny\0", ""]
)
def test_a_model_s_name_is_no_place_to_load_from(server, model):
    with pytest.raises(openai.NotFoundError, match="there is no model"):
        server.client.chat.completions.create(model=model, messages=HELLO)


@BOTH
def test_a_text_to_be_filled_in_is_refused(server, model):
    with pytest.raises(openai.BadRequestError, match="suffix") as caught:
        server.client.completions.create(model=model, prompt="def f(x):", suffix="return y", max_tokens=2)
    assert caught.value.body["param"] == "suffix"
    assert server.client.completions.create(model=model, prompt="Hi", suffix="", max_tokens=2).choices


def test_what_a_browser_is_told(server):
    status, headers, _ = raw(server, "/v1/models", None, "GET", origin=server.address)
    assert status == 200
    assert "default-src 'none'" in headers["content-security-policy"]
    assert not any(name.lower().startswith("access-control") for name in headers)


def test_two_hundred_clients_at_once_are_answered_or_get_429(server):
    async def ask(client):
        try:
            reply = await client.chat.completions.create(
                model="tiny", messages=HELLO, max_tokens=200, temperature=0
            )
            return reply.choices[0].finish_reason
        except openai.RateLimitError as error:
            return int(error.response.headers["retry-after"])

    async def everyone():
        address = f"{server.address}/v1"
        async with openai.AsyncOpenAI(base_url=address, api_key="x", max_retries=0, timeout=120) as client:
            return await asyncio.gather(*(ask(client) for _ in range(200)))

    results = asyncio.run(everyone())
    waits = [result for result in results if isinstance(result, int)]
    assert all(seconds > 0 for seconds in waits) and 0 < len(waits) <= 160
    assert {result for result in results if isinstance(result, str)} <= {"stop", "length"}
    assert server.idle()


@BOTH
@pytest.mark.parametrize("first_word", [True, False])
def test_a_client_that_goes_away_frees_its_place(server, model, first_word):
    body = json.dumps({
        "model": model, "stream": first_word, "max_tokens": 4000,
        "messages": [{"role": "user", "content": "Count to a million."}], "seed": 1,
    }).encode()  # fmt: skip
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        if first_word:
            assert b"200 OK" in connection.recv(200)
        else:
            time.sleep(0.2)
    assert server.idle()
    assert server.client.chat.completions.create(model=model, messages=HELLO, max_tokens=2)


def test_a_reader_that_is_slow_does_not_hold_up_others(server):
    slow = server.client.chat.completions.create(
        model="tiny", messages=HELLO, max_tokens=400, stream=True, seed=2
    )
    next(iter(slow))
    for _ in range(3):
        assert server.client.chat.completions.create(model="tiny", messages=HELLO, max_tokens=3)
    slow.close()
    assert server.idle()


def test_a_key_is_asked_for_and_a_draining_server_finishes_its_answers(tiny_teacher):
    running = RunningServer(f"tiny={tiny_teacher}", key="secret")
    stranger = openai.OpenAI(base_url=f"{running.address}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        stranger.models.list()
    stream = iter(
        running.client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "PRIVATE-WORDS"}], max_tokens=60, stream=True
        )
    )
    next(stream)
    running.process.send_signal(signal.SIGTERM)
    assert list(stream)[-1].choices[0].finish_reason
    status, log = running.wait_stopped()
    assert status == 0
    assert "PRIVATE-WORDS" not in log and "secret" not in log


def test_another_address_is_warned_of(tiny_teacher):
    running = RunningServer(f"tiny={tiny_teacher}", options=["--host", "0.0.0.0"])
    _, log = running.stop()
    assert "other machines can reach this server" in " ".join(log.split())
