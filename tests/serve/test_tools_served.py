"""Tools, and embeddings of one model from both backends, as the official client sees them."""

import asyncio
import base64
import json
import struct

import openai
import pytest
from running_server import RunningServer
from tool_cases import REFERRING
from tool_models import make_tool_model

pytestmark = pytest.mark.slow
BOTH = pytest.mark.parametrize("model", ["weights", "file"])
DRAW = {"type": "function", "function": {"name": "draw", "description": "Draws.", "parameters": REFERRING}}
LOOK = {
    "type": "function",
    "function": {
        "name": "look.up",
        "parameters": {
            "type": "object",
            "properties": {"what": {"type": "array", "items": {"enum": ["sky", "sea"]}, "maxItems": 2}},
            "required": ["what"],
            "additionalProperties": False,
        },
    },
}
HELLO = [{"role": "user", "content": "Draw."}]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory, file = make_tool_model(tmp_path_factory.mktemp("tools") / "model")
    running = RunningServer(f"weights={directory}", f"file={file}", "embedded:smollm2")
    yield running
    status, log = running.stop()
    assert status == 0
    assert "Traceback" not in log and "rror" not in log, log


def fits(call):
    arguments = json.loads(call.function.arguments)
    if call.function.name == "draw":
        return (
            set(arguments) == {"colour", "size"}
            and arguments["colour"] in ("red", "blue")
            and type(arguments["size"]) is int
            and arguments["size"] <= 9
        )
    assert call.function.name == "look.up"
    return set(arguments) == {"what"} and set(arguments["what"]) <= {"sky", "sea"}


@BOTH
def test_a_forced_call_follows_the_tool_s_schema(server, model):
    options = {
        "model": model, "messages": HELLO, "tools": [DRAW, LOOK], "tool_choice": "required", "seed": 1,
        "n": 4, "max_tokens": 200, "temperature": 1.2,
    }  # fmt: skip
    whole = server.client.chat.completions.create(**options)
    for choice in whole.choices:
        assert choice.finish_reason == "tool_calls" and choice.message.content is None
        (call,) = choice.message.tool_calls
        assert call.type == "function" and fits(call)
    calls = [choice.message.tool_calls[0] for choice in whole.choices]
    assert len({call.id for call in calls}) == 4
    assert len({call.function.arguments for call in calls}) > 1
    streamed = {n: {"name": "", "arguments": ""} for n in range(4)}
    reasons = {}
    for chunk in server.client.chat.completions.create(**options, stream=True):
        for choice in chunk.choices:
            reasons[choice.index] = choice.finish_reason
            assert not choice.delta.content
            for delta in choice.delta.tool_calls or ():
                assert delta.index == 0
                streamed[choice.index]["name"] += delta.function.name or ""
                streamed[choice.index]["arguments"] += delta.function.arguments
    assert set(reasons.values()) == {"tool_calls"}
    if model == "weights":  # the results of llama.cpp's slots differ in their last bits
        assert list(streamed.values()) == [
            {"name": call.function.name, "arguments": call.function.arguments} for call in calls
        ]


def test_many_constrained_answers_at_once_all_end(server):
    """The sampling thread and the streaming thread once shared a matcher: every other request failed."""
    for seed in range(20):
        chunks = server.client.chat.completions.create(
            model="weights", messages=HELLO, tools=[DRAW, LOOK], tool_choice="required", seed=seed, n=4,
            max_tokens=200, stream=True,
        )  # fmt: skip
        reasons = {choice.index: choice.finish_reason for chunk in chunks for choice in chunk.choices}
        assert reasons == dict.fromkeys(range(4), "tool_calls")


@BOTH
def test_a_named_tool_is_the_one_that_is_called(server, model):
    for tool in (DRAW, LOOK):
        name = tool["function"]["name"]
        (choice,) = server.client.chat.completions.create(
            model=model, messages=HELLO, tools=[DRAW, LOOK], max_tokens=200, seed=2,
            tool_choice={"type": "function", "function": {"name": name}},
        ).choices  # fmt: skip
        assert [call.function.name for call in choice.message.tool_calls] == [name]
        assert fits(choice.message.tool_calls[0])


@BOTH
def test_a_call_that_is_cut_off_is_text(server, model):
    (choice,) = server.client.chat.completions.create(
        model=model, messages=HELLO, tools=[DRAW], tool_choice="required", max_tokens=5
    ).choices
    assert choice.finish_reason == "length" and choice.message.tool_calls is None
    assert choice.message.content.startswith("<tool_call>\n{")


@BOTH
def test_an_answer_need_not_call_and_results_are_read(server, model):
    call = {
        "id": "call_1",
        "type": "function",
        "function": {"name": "draw", "arguments": '{"colour": "red"}'},
    }
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call_1", "content": "drawn"},
    ]
    options = {"model": model, "max_tokens": 8, "temperature": 0}
    create = server.client.chat.completions.create
    with_result = create(**options, messages=messages, tools=[DRAW, LOOK], parallel_tool_calls=False)
    assert with_result.choices[0].message.tool_calls is None and with_result.choices[0].message.content
    none = create(**options, messages=HELLO, tools=[DRAW], tool_choice="none")
    plain = create(**options, messages=HELLO)
    assert none.choices[0].message.content == plain.choices[0].message.content
    assert none.usage.prompt_tokens == plain.usage.prompt_tokens
    longer = create(**options, messages=messages)
    assert longer.usage.prompt_tokens > plain.usage.prompt_tokens + len("drawn")


@pytest.mark.parametrize(
    ("more", "message", "param"),
    [
        ({"functions": [{"name": "f"}]}, "send tools", "functions"),
        ({"function_call": "auto"}, "send tools", "functions"),
        ({"tool_choice": "required"}, "needs tools", "tool_choice"),
        ({"tools": [DRAW, DRAW]}, "same name", "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "name", "tools.0.function.name"),
        ({"tools": [DRAW], "response_format": {"type": "json_object"}}, "cannot call tools", "tool_choice"),
        (
            {"tools": [DRAW], "tool_choice": {"type": "function", "function": {"name": "gone"}}},
            "no tool 'gone'",
            "tool_choice",
        ),
        (
            {
                "tools": [{"type": "function", "function": {"name": "f", "parameters": {"type": "strin"}}}],
                "tool_choice": "required",
            },
            "strin",
            "tools.0.function.parameters",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{"}}
                        ],
                    }
                ]
            },
            "not a JSON object",
            "messages",
        ),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {
                                "id": "1",
                                "type": "function",
                                "function": {"name": "f", "arguments": '{"x": "\\ud83d"}'},
                            }
                        ],
                    }
                ]
            },
            "not a JSON object",
            "messages",
        ),
    ],
)
def test_invalid_tool_requests_are_refused(server, more, message, param):
    with pytest.raises(openai.BadRequestError, match=message) as caught:
        server.client.chat.completions.create(**{"model": "weights", "messages": HELLO, **more})
    assert caught.value.body["param"] == param


def test_both_backends_embed_a_text_alike(server):
    texts = [
        "the still takes a large spirit apart",
        "every question has an answer",
        "a",
        "naïve 東京 🙂 " * 60,
    ]

    def vectors(model):
        rows = server.client.embeddings.create(model=model, input=texts).data  # in base64, as the client asks
        return [row.embedding for row in rows]

    def cosine(a, b):
        return sum(x * y for x, y in zip(a, b, strict=True))

    ours, theirs = vectors("weights"), vectors("file")
    for mine, other in zip(ours, theirs, strict=True):
        assert cosine(other, other) == pytest.approx(1, abs=1e-4)
        assert cosine(mine, other) > 0.999
    assert cosine(theirs[0], theirs[1]) < 0.999
    raw = server.client.embeddings.with_raw_response.create(model="file", input="a", encoding_format="base64")
    packed = base64.b64decode(json.loads(raw.text)["data"][0]["embedding"])
    assert struct.unpack(f"<{len(packed) // 4}f", packed) == pytest.approx(theirs[2], abs=1e-6)
    with pytest.raises(openai.BadRequestError, match=r"\d+ tokens; llama.cpp embeds at most 2048"):
        server.client.embeddings.create(model="file", input="z" * 3000)


def test_embeddings_and_answers_at_once(server):
    async def everyone():
        address = f"{server.address}/v1"
        async with openai.AsyncOpenAI(base_url=address, api_key="x", max_retries=0) as client:
            return await asyncio.gather(
                *(client.embeddings.create(model="file", input=f"text {n}") for n in range(6)),
                *(
                    client.chat.completions.create(model="file", messages=HELLO, max_tokens=20)
                    for _ in range(6)
                ),
            )

    done = asyncio.run(everyone())
    assert len(done) == 12 and all(one.usage.prompt_tokens > 0 for one in done)
    assert server.idle()
