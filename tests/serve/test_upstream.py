"""`still serve api:…`: another server's answers through ours, compared with its own."""

import contextlib
import json
import signal
import socket
import time

import openai
import pytest
from faulty_upstream import WORDS, FaultyUpstream, serving
from running_server import RunningServer

from stillhouse.cli import main

pytestmark = pytest.mark.slow
HELLO = [{"role": "user", "content": "Say hello."}]
# A proxy that does not exist: none may be used for requests to this machine.
PROXY = ["env", "-u", "no_proxy", "-u", "NO_PROXY", "http_proxy=http://127.0.0.1:9"]
THEIR_KEY, OUR_KEY, PROMPT = "key-of-the-upstream", "key-of-our-clients", "Quetzalcoatl"


@pytest.fixture(scope="module")
def upstream(tiny_teacher):
    running = RunningServer("embedded:smollm2", f"tiny={tiny_teacher}", key=THEIR_KEY)
    with contextlib.closing(running.client):
        yield running
    assert running.stop()[0] == 0


@pytest.fixture(scope="module")
def environment():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UPSTREAM_KEY", THEIR_KEY)
        yield patch


@pytest.fixture(scope="module")
def faulty():
    return FaultyUpstream()


@pytest.fixture(scope="module")
def faulty_address(faulty):
    with serving(faulty) as address:
        yield address


@pytest.fixture(scope="module")
def ours(upstream, faulty_address, environment, tiny_teacher):
    running = RunningServer(
        f"smollm2=api:{upstream.address}/v1#smollm2",
        f"random=api:{upstream.address}/v1#tiny",
        f"missing=api:{upstream.address}/v1#missing",
        f"faulty=api:{faulty_address}#theirs",
        "dead=api:http://127.0.0.1:9/v1#x",
        f"here={tiny_teacher}",
        options=["--api-key-env", "UPSTREAM_KEY", "--queue", "12"],
        before=PROXY,
    )
    with contextlib.closing(running.client):
        yield running
    status, log = running.stop()
    assert status == 0
    assert not any(word in log for word in ("Traceback", "rror", "arning", THEIR_KEY, PROMPT)), log


MODELS = pytest.mark.parametrize(("model", "theirs"), [("smollm2", "smollm2"), ("random", "tiny")])


def answer(client, model, **asked):
    """What a chat is answered, or how it is refused, without what differs from one request to the next."""
    try:
        reply = client.chat.completions.create(model=model, messages=asked.pop("messages", HELLO), **asked)
    except openai.APIStatusError as error:
        return error.status_code, error.body
    return reply.model, reply.model_dump(exclude={"id", "created", "model", "usage"})


def test_models_say_who_is_asked(ours, upstream):
    listed = {model.id: getattr(model, "forwarded_to", None) for model in ours.client.models.list()}
    host = upstream.address.removeprefix("http://")
    assert list(listed) == ["smollm2", "random", "missing", "faulty", "dead", "here"]
    assert listed["smollm2"] == listed["random"] == host
    assert listed["dead"] == "127.0.0.1:9" and listed["here"] is None
    assert ours.client.models.retrieve("random").forwarded_to == host


@MODELS
@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": 0, "n": 2},
        {"seed": 5, "temperature": 1.2, "stop": ["e"]},
        {"temperature": 0, "logprobs": True, "top_logprobs": 3},
        {"temperature": 0, "response_format": {"type": "json_object"}},
        {"tools": [{"type": "function", "function": {"name": "f"}}], "temperature": 0},
        {"temperature": 9},
        {"logit_bias": {"3": 1}, "temperature": 0},
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        {"messages": [{"role": "user", "content": "word " * 20_000}]},
    ],
    ids=["n", "stop", "logprobs", "form", "tools", "temperature", "bias", "picture", "context"],
)
def test_a_chat_is_answered_or_refused_as_the_other_server_does(ours, upstream, model, theirs, asked):
    straight, forwarded = (
        answer(client, name, max_tokens=12, **asked)
        for client, name in ((upstream.client, theirs), (ours.client, model))
    )
    assert forwarded[1] == straight[1]
    assert forwarded[0] == (model if straight[0] == theirs else straight[0])


@MODELS
def test_a_stream_is_the_whole_answer(ours, upstream, model, theirs):
    asked = {"messages": HELLO, "max_tokens": 12, "temperature": 0}
    wanted = upstream.client.chat.completions.create(model=theirs, **asked)
    chunks = list(
        ours.client.chat.completions.create(
            model=model, **asked, stream=True, stream_options={"include_usage": True}
        )
    )
    assert {chunk.model for chunk in chunks} == {model}
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == wanted.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == wanted.usage.completion_tokens


def test_completions_and_embeddings(ours, upstream):
    def completed(client, model):
        reply = client.completions.create(
            model=model, prompt=["One, two,", "The sky"], max_tokens=4, temperature=0, logprobs=2, echo=True
        )
        return [(choice.text, choice.finish_reason, choice.logprobs.tokens) for choice in reply.choices]

    def embedded(client, model, form):
        reply = client.embeddings.create(model=model, input=["a cat", "a dog"], encoding_format=form)
        return [row.embedding for row in reply.data]

    assert len(completed(ours.client, "random")) == 2
    assert completed(ours.client, "random") == completed(upstream.client, "tiny")
    for form in ("float", "base64"):
        assert embedded(ours.client, "random", form) == embedded(upstream.client, "tiny", form)


def test_a_model_of_this_machine_is_answered_beside_it(ours, upstream):
    asked = {"max_tokens": 8, "temperature": 0}
    assert answer(ours.client, "here", **asked)[1] == answer(upstream.client, "tiny", **asked)[1]
    with pytest.raises(openai.NotFoundError, match="no model 'gone' here; there is smollm2, random, missing"):
        ours.client.chat.completions.create(model="gone", messages=HELLO)
    with pytest.raises(openai.NotFoundError, match="no model 'missing' here; there is smollm2, tiny"):
        ours.client.chat.completions.create(model="missing", messages=HELLO)


def test_a_request_arrives_as_it_was_sent_but_for_the_model_and_the_key(ours, faulty):
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    messages = [{"role": "user", "content": [picture]}, {"role": "user", "content": PROMPT}]
    asked = {
        "messages": messages, "tools": [{"type": "function", "function": {"name": "f", "strict": True}}],
        "tool_choice": "required", "presence_penalty": 1.5, "max_completion_tokens": 7,
    }  # fmt: skip
    stranger = openai.OpenAI(
        base_url=f"{ours.address}/v1", api_key=OUR_KEY, max_retries=0, default_headers={"cookie": "a=b"}
    )
    with contextlib.closing(stranger):
        reply = stranger.chat.completions.create(
            model="faulty", **asked, extra_body={"odd": ["\u2028", 1e-7, 2**70]}
        )
    assert faulty.bodies[-1] == {**asked, "model": "theirs", "odd": ["\u2028", 1e-7, 2**70]}
    assert faulty.headers[-1]["authorization"] == f"Bearer {THEIR_KEY}"
    assert OUR_KEY not in str(faulty.headers[-1]) and "cookie" not in faulty.headers[-1]
    assert reply.model == "faulty"
    assert reply.more == {"model": "kept"}


@pytest.mark.parametrize(
    ("order", "status", "message"),
    [
        ("busy", 429, "later"),
        ("key", 502, "refuses this server's key .no such key.; start this server with .* UPSTREAM_KEY"),
        ("proxy", 503, "Bad Gateway"),
        ("detail", 422, "wrong"),
        ("moved", 502, "status 307"),
        ("inside", 502, "a gateway's"),
        ("list", 502, "not a JSON object"),
        ("text", 502, "not JSON"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_an_error_of_the_other_server_comes_back(ours, order, status, message, stream):
    with pytest.raises(openai.APIStatusError, match=message) as caught:
        ours.client.chat.completions.create(
            model="faulty", messages=[{"role": "user", "content": order}], stream=stream
        )
    assert caught.value.status_code == status
    assert {"message", "type", "param", "code"} <= set(caught.value.body)
    assert caught.value.response.headers.get("retry-after") == ("17" if order == "busy" else None)


def test_a_server_that_is_not_there_is_named(ours):
    with pytest.raises(
        openai.InternalServerError, match=r"dead: 127.0.0.1:9 does not answer .*check that"
    ) as caught:
        ours.client.chat.completions.create(model="dead", messages=HELLO)
    assert caught.value.status_code == 502


@pytest.mark.parametrize(
    ("order", "message"), [("cut", "broke off"), ("silent end", "broke off"), ("error", "out of memory")]
)
def test_a_stream_that_is_cut_says_so(ours, order, message):
    stream = ours.client.chat.completions.create(
        model="faulty", messages=[{"role": "user", "content": order}], stream=True
    )
    texts = []
    with pytest.raises(openai.APIError, match=message):
        texts.extend(chunk.choices[0].delta.content for chunk in stream)
    stream.close()
    assert ours.idle()
    stream = raw_stream(ours, order)
    assert stream.count(b'"error"') == 1 and b"[DONE]" not in stream


@pytest.mark.parametrize("order", ["in crumbs", "no last empty line"])
def test_events_are_whole_however_they_arrive(ours, order):
    stream = ours.client.chat.completions.create(
        model="faulty", messages=[{"role": "user", "content": order}], stream=True
    )
    texts = [chunk.choices[0].delta.content for chunk in stream]
    assert texts == (WORDS if order == "in crumbs" else WORDS[:2])
    assert raw_stream(ours, order).count(b"data: [DONE]\n\n") == 1


@pytest.mark.parametrize(
    ("stream", "waits"), [(True, True), (True, False), (False, False)], ids=["in it", "before", "whole"]
)
@MODELS
def test_a_client_that_goes_away_frees_the_other_server_too(ours, upstream, model, theirs, stream, waits):
    asked = {
        "model": model, "stream": stream, "max_tokens": 4000, "seed": 1,
        "messages": [{"role": "user", "content": "Count to a million."}],
    }  # fmt: skip
    assert upstream.idle()
    with sent(ours, asked) as connection:
        if waits:
            assert b"200 OK" in connection.recv(200)
        while upstream.get("/health")["answers"] == 0:
            time.sleep(0.01)
    assert upstream.idle() and ours.idle()


def test_a_slow_reader_delays_no_other_request_and_the_upstream_is_not_read_ahead(ours, faulty):
    asked = {"model": "faulty", "stream": True, "messages": [{"role": "user", "content": "endless"}]}
    with sent(ours, asked) as connection:
        assert b"200 OK" in connection.recv(200)
        written = -1
        while faulty.written != written:  # until every buffer on the way is full
            written = faulty.written
            time.sleep(0.5)
        assert answer(ours.client, "random", max_tokens=3)[0] == "random"
    assert written < 10_000  # of 10 kB each
    assert ours.idle()
    for _ in range(100):
        if not faulty.open:
            break
        time.sleep(0.05)
    assert faulty.open == 0


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"{", 400),
        (b'{"model": "faulty", "n": NaN}', 400),
        (b'{"model": "faulty", "n": 1e999}', 400),
        (b'{"model": "faulty", "n": ' + b"9" * 5000 + b"}", 400),
        (b'{"model": "faulty", "n": ' + b"[" * 5000 + b"]" * 5000 + b"}", 400),
    ],
)
def test_what_is_not_json_goes_nowhere(ours, faulty, body, status):
    before = len(faulty.bodies)
    with sent(ours, body) as connection:
        assert connection.makefile("rb").readline().split()[1] == str(status).encode()
    assert len(faulty.bodies) == before


def test_the_queue_the_key_and_the_end_are_our_own(faulty, faulty_address, environment):
    environment.delenv("OPENAI_API_KEY", raising=False)
    running = RunningServer(f"faulty=api:{faulty_address}#theirs", key=OUR_KEY, options=["--queue", "1"])
    options = {"model": "faulty", "messages": [{"role": "user", "content": "slow"}], "stream": True}
    before = len(faulty.bodies)
    with (
        openai.OpenAI(base_url=f"{running.address}/v1", api_key="wrong", max_retries=0) as stranger,
        pytest.raises(openai.AuthenticationError, match="missing or wrong"),
    ):
        stranger.chat.completions.create(**options)
    assert len(faulty.bodies) == before
    stream = iter(running.client.chat.completions.create(**options))
    assert next(stream).choices[0].delta.content == WORDS[0]
    with pytest.raises(openai.RateLimitError, match="retry later"):
        running.client.chat.completions.create(**options)
    running.process.send_signal(signal.SIGTERM)
    assert [chunk.choices[0].delta.content for chunk in stream] == WORDS[1:2]
    running.client.close()
    status, log = running.wait_stopped()
    assert status == 0
    assert "authorization" not in faulty.headers[-1]
    assert OUR_KEY not in log and "no key (OPENAI_API_KEY is empty)" in " ".join(log.split())


def test_another_machine_is_warned_of(environment):
    environment.setenv("GPU_KEY", "sesame")
    options = ["--api-key-env", "far=GPU_KEY"]
    running = RunningServer("far=api:http://user:word@gpu.example:8000/v1#org/model", options=options)
    running.client.close()
    log = " ".join(running.stop()[1].split())
    assert "warning: far: prompts go to gpu.example:8000, which is another machine, unencrypted" in log
    assert "the key in GPU_KEY" in log and "sesame" not in log and "word" not in log


def test_a_key_of_an_unknown_model_and_a_key_that_cannot_be_sent(environment, capsys):
    assert main(["serve", "big=api:http://127.0.0.1:9/v1#x", "--api-key-env", "bgi=GPU_KEY"]) == 2
    assert "no api: model is named 'bgi'" in capsys.readouterr().err
    environment.setenv("GPU_KEY", "sesame\u2013street")
    assert main(["serve", "api:http://127.0.0.1:9/v1#x", "--api-key-env", "GPU_KEY"]) == 1
    errors = capsys.readouterr().err
    assert "the key in GPU_KEY has characters that no header can carry" in errors and "sesame" not in errors


@contextlib.contextmanager
def sent(running, asked):
    """A connection on which a chat was requested; closed at the end."""
    body = asked if isinstance(asked, bytes) else json.dumps(asked).encode()
    head = "POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", running.port), timeout=30) as connection:
        connection.sendall(f"{head}Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode() + body)
        yield connection


def raw_stream(running, order):
    asked = {"model": "faulty", "stream": True, "messages": [{"role": "user", "content": order}]}
    with sent(running, asked) as connection:
        return connection.makefile("rb").read()
