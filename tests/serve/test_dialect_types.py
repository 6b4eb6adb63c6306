"""Answers in the dialects, validated by the official clients' own types, and errors in their forms."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import anthropic.types
import ollama
import openai.types.responses
import pytest
from chat_templates import QWEN_TOOLS
from faulty_upstream import FaultyUpstream, serving
from pydantic import TypeAdapter
from running_server import RunningServer
from tool_models import make_model

pytestmark = pytest.mark.slow
DRAW = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}},
    "required": ["colour"],
    "additionalProperties": False,
}
HELLO = [{"role": "user", "content": "Draw."}]
PATHS = ("/v1/responses", "/v1/messages", "/api/chat")
Event = dict[str, Any]
USER = {"role": "user"}


@pytest.fixture(scope="module")
def faulty() -> FaultyUpstream:
    return FaultyUpstream()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, faulty: FaultyUpstream) -> Iterator[RunningServer]:
    directory = make_model(tmp_path_factory.mktemp("model") / "model", QWEN_TOOLS)
    with serving(faulty) as address:
        running = RunningServer(
            f"tools={directory}", f"theirs=api:{address}#theirs", key="secret", options=["--queue", "2"]
        )
        yield running
        status, log = running.stop()
    assert status == 0
    assert "Traceback" not in log and "internal error" not in log, log


def post(server: RunningServer, path: str, body: Any, key: str = "secret") -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    headers = {"content-type": "application/json", "x-api-key": key}
    connection.request("POST", path, json.dumps(body), headers)
    response = connection.getresponse()
    content = response.read()
    connection.close()
    return response.status, content


def body_of(path: str, model: str, text: str = "Draw.", tokens: int = 12, **more: Any) -> Event:
    """The same request in each dialect."""
    messages = [{"role": "user", "content": text}]
    bodies = {
        "/v1/responses": {"input": messages, "max_output_tokens": tokens},
        "/v1/messages": {"messages": messages, "max_tokens": tokens},
        "/api/chat": {"messages": messages, "options": {"num_predict": tokens}, "stream": False},
    }
    return {"model": model, **bodies[path], **more}


def forced(path: str) -> Event:
    """Fields that make the model call a tool."""
    function = {"name": "draw", "description": "Draws.", "parameters": DRAW}
    return {
        "/v1/responses": {"tools": [{"type": "function", **function}], "tool_choice": "required"},
        "/v1/messages": {
            "tools": [{"name": "draw", "input_schema": DRAW}],
            "tool_choice": {"type": "any"},
        },
        "/api/chat": {"tools": [{"type": "function", "function": function}]},
    }[path]


TYPES = {
    "/v1/responses": (openai.types.responses.Response, openai.types.responses.ResponseStreamEvent),
    "/v1/messages": (anthropic.types.Message, anthropic.types.RawMessageStreamEvent),
    "/api/chat": (ollama.ChatResponse, ollama.ChatResponse),
}


def events_of(path: str, stream: bytes) -> list[Event]:
    if path == "/api/chat":
        return [json.loads(line) for line in stream.splitlines()]
    events = []
    for block in stream.decode().removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        events.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {events[-1]['type']}"
    return events


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("kind", ["text", "tool", "theirs"])
def test_answers_and_events_have_the_clients_types(server: RunningServer, path: str, kind: str) -> None:
    body = body_of(
        path, "theirs" if kind == "theirs" else "tools", **(forced(path) if kind == "tool" else {})
    )
    whole_type, event_type = TYPES[path]
    status, whole = post(server, path, body)
    assert status == 200
    TypeAdapter(whole_type).validate_json(whole, strict=True)
    status, stream = post(server, path, body | {"stream": True})
    assert status == 200
    events = events_of(path, stream)
    for event in events:
        TypeAdapter(event_type).validate_json(json.dumps(event), strict=True)
    if kind == "theirs":
        assert b"Hello." in whole and b"one " in stream


def test_the_events_of_messages_come_in_their_order(server: RunningServer) -> None:
    _, stream = post(server, "/v1/messages", body_of("/v1/messages", "tools", stream=True))
    kinds = [event["type"] for event in events_of("/v1/messages", stream)]
    assert kinds[:2] == ["message_start", "content_block_start"]
    assert set(kinds[2:-3]) == {"content_block_delta"}
    assert kinds[-3:] == ["content_block_stop", "message_delta", "message_stop"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("model", "text", "key", "status"),
    [
        ("tools", "Hi", "wrong", 401),
        ("other", "Hi", "secret", 404),
        ("tools", "word " * 20_000, "secret", 400),
        ("theirs", "busy", "secret", 429),
        ("theirs", "proxy", "secret", 503),
    ],
)
def test_errors_have_the_form_of_the_api(
    server: RunningServer, path: str, model: str, text: str, key: str, status: int
) -> None:
    received, content = post(server, path, body_of(path, model, text), key)
    assert received == status
    _check_error(path, json.loads(content), status)


@pytest.mark.parametrize("path", ["/v1/messages/other", "/api/pull", "/v1/other"])
def test_an_unknown_path_is_an_error_in_the_form_of_its_api(server: RunningServer, path: str) -> None:
    status, content = post(server, path, {})
    assert status == 404
    _check_error(path, json.loads(content), 404)


def _check_error(path: str, error: Event, status: int) -> None:
    kinds = {400: "invalid_request_error", 401: "authentication_error", 404: "not_found_error",
             429: "rate_limit_error", 503: "overloaded_error"}  # fmt: skip
    if path.startswith("/v1/messages"):
        assert error["type"] == "error" and error["error"]["type"] == kinds[status]
        assert error["error"]["message"]
    elif path.startswith("/api/"):
        assert set(error) == {"error"} and isinstance(error["error"], str) and error["error"]
    else:
        assert error["error"]["message"] and "type" in error["error"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("order", ["error", "cut", "silent end"])
def test_an_error_in_mid_stream_has_the_form_of_the_api(server: RunningServer, path: str, order: str) -> None:
    status, stream = post(server, path, body_of(path, "theirs", order, stream=True))
    assert status == 200 and b"one " in stream
    last = events_of(path, stream)[-1]
    if path == "/v1/responses":
        assert last["type"] == "response.failed" and last["response"]["error"]["code"] == "server_error"
        assert last["response"]["output"][-1]["status"] == "incomplete"
        TypeAdapter(TYPES[path][1]).validate_json(json.dumps(last), strict=True)
    elif path == "/v1/messages":
        assert last["type"] == "error" and last["error"]["type"] == "api_error"
    else:
        assert set(last) == {"error"}


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("model", ["tools", "theirs"])
def test_a_client_that_leaves_frees_the_server(
    server: RunningServer, faulty: FaultyUpstream, path: str, model: str
) -> None:
    body = json.dumps(body_of(path, model, "endless", tokens=4000, stream=True))
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Api-Key: secret\r\nContent-Type: application/json\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        assert client.recv(4000).startswith(b"HTTP/1.1 200")
        client.recv(4000)
    assert server.idle()
    for _ in range(100):
        if not faulty.open:
            break
        time.sleep(0.05)
    assert not faulty.open


CALLS = [
    {"index": 0, "id": "a", "function": {"name": "draw", "arguments": ""}},
    {"index": 0, "function": {"arguments": '{"colour": "red"}'}},
    {"index": 1, "id": "b", "function": {"name": "draw", "arguments": '{"colour":'}},
    {"index": 1, "id": "b", "function": {"arguments": ' "blue"}'}},  # some servers repeat the id
]


@pytest.mark.parametrize("path", PATHS)
def test_two_calls_in_a_stream_stay_two(server: RunningServer, path: str) -> None:
    status, stream = post(server, path, body_of(path, "theirs", json.dumps(CALLS), stream=True))
    assert status == 200
    events = events_of(path, stream)
    if path == "/v1/responses":
        items = events[-1]["response"]["output"]
        arguments = [json.loads(item["arguments"]) for item in items if item["type"] == "function_call"]
    elif path == "/v1/messages":
        assert [e["content_block"]["id"] for e in events if e["type"] == "content_block_start"] == ["a", "b"]
        parts = [
            (event["index"], event["delta"]["partial_json"])
            for event in events
            if event["type"] == "content_block_delta"
        ]
        arguments = [json.loads("".join(text for at, text in parts if at == index)) for index in (0, 1)]
    else:
        calls = [call for event in events for call in event["message"].get("tool_calls", ())]
        arguments = [call["function"]["arguments"] for call in calls]
    assert arguments == [{"colour": "red"}, {"colour": "blue"}]


@pytest.mark.parametrize("path", ["/v1/messages", "/api/chat"])
def test_arguments_that_are_no_object_are_an_error(server: RunningServer, path: str) -> None:
    broken = [{"index": 0, "id": "a", "function": {"name": "draw", "arguments": '{"colour": "re'}}]
    status, content = post(server, path, body_of(path, "theirs", json.dumps(broken)))
    assert status == 502 and b"not a JSON object" in content
    if path == "/api/chat":
        _, stream = post(server, path, body_of(path, "theirs", json.dumps(broken), stream=True))
        assert "not a JSON object" in events_of(path, stream)[-1]["error"]


def test_the_stop_sequence_is_named(server: RunningServer) -> None:
    body = body_of("/v1/messages", "tools", tokens=60)
    _, content = post(server, "/v1/messages", body | {"temperature": 0})
    text = json.loads(content)["content"][0]["text"]
    stop = text[3:5]
    body |= {"temperature": 0, "stop_sequences": ["never\n", stop]}
    _, content = post(server, "/v1/messages", body)
    message = json.loads(content)
    assert (message["stop_reason"], message["stop_sequence"]) == ("stop_sequence", stop)
    _, stream = post(server, "/v1/messages", body | {"stream": True})
    delta = events_of("/v1/messages", stream)[-2]["delta"]
    assert (delta["stop_reason"], delta["stop_sequence"]) == ("stop_sequence", stop)


def test_the_count_is_that_of_the_prompt(server: RunningServer) -> None:
    for more in (
        {"tools": [{"name": "draw", "input_schema": DRAW}], "tool_choice": {"type": "none"}},
        {"thinking": {"type": "disabled"}},
        {"output_config": {"effort": "low"}},
    ):
        asked = {"model": "tools", "messages": HELLO, **more}
        status, counted = post(server, "/v1/messages/count_tokens", asked)
        assert status == 200
        usage = json.loads(post(server, "/v1/messages", asked | {"max_tokens": 1})[1])["usage"]
        read = usage["input_tokens"] + usage["cache_read_input_tokens"]
        assert json.loads(counted)["input_tokens"] == read


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/responses", {"input": [{"role": "user", "content": 5}]}),
        ("/v1/responses", {"input": [{"role": "user", "content": ["a"]}]}),
        ("/v1/responses", {"text": {"format": "x"}}),
        ("/v1/responses", {"text": {"verbosity": "low"}}),
        ("/v1/responses", {"tool_choice": "required"}),
        ("/v1/responses", {"unknown": 1}),
        (
            "/v1/messages",
            {"messages": [{**USER, "content": [{"type": "tool_result", "content": 5}]}]},
        ),
        ("/v1/messages", {"output_config": {"format": "x"}}),
        ("/v1/messages", {"tools": [{"name": "a"}], "tool_choice": {"type": ["any"]}}),
        ("/v1/messages", {"tool_choice": {"type": "any"}}),
        ("/v1/messages", {"unknown": 1}),
        ("/api/chat", {"options": {"num_predict": "x"}}),
        ("/api/chat", {"messages": [{"role": "assistant", "tool_calls": [{"function": 5}]}]}),
        ("/api/chat", {"unknown": 1}),
    ],
)
def test_a_malformed_field_is_the_clients_fault(server: RunningServer, path: str, fields: Event) -> None:
    status, content = post(server, path, body_of(path, "tools") | fields)
    assert status == 400
    _check_error(path, json.loads(content), 400)


def test_null_is_absent(server: RunningServer) -> None:
    for path, fields in (
        (
            "/v1/responses",
            ("instructions", "tools", "tool_choice", "text", "reasoning", "include"),
        ),
        (
            "/v1/messages",
            ("system", "tools", "tool_choice", "thinking", "stop_sequences", "stream"),
        ),
        ("/api/chat", ("tools", "format", "think", "keep_alive", "logprobs", "top_logprobs")),
    ):
        body = body_of(path, "tools", tokens=1) | dict.fromkeys(fields)
        assert post(server, path, body)[0] == 200
    for path in ("/api/chat", "/api/generate"):
        field = {"model": "tools", {"/api/chat": "messages", "/api/generate": "prompt"}[path]: None}
        assert json.loads(post(server, path, field)[1])["done_reason"] == "load"
        assert post(server, path, field | {"model": "other"})[0] == 404
