"""OpenAI's Responses, Anthropic's Messages and Ollama's API, driven by their official clients."""

import json
from contextlib import closing

import anthropic
import ollama
import openai
import pytest
from running_server import RunningServer
from tool_models import make_tool_model

pytestmark = pytest.mark.slow
QUESTION = "What is the capital of France?"
GREEDY = {"temperature": 0}  # the client of today has no argument for it any more
SCHEMA = {
    "type": "object",
    "properties": {"capital": {"type": "string", "maxLength": 12}, "sure": {"type": "boolean"}},
    "required": ["capital", "sure"],
    "additionalProperties": False,
}
DRAW = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "blue"]}},
    "required": ["colour"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    directory, _ = make_tool_model(tmp_path_factory.mktemp("tools") / "model")
    running = RunningServer(f"tools={directory}", "embedded:smollm2", key="secret")
    yield running
    status, log = running.stop()
    assert status == 0
    assert "Traceback" not in log and "rror" not in log, log


@pytest.fixture(scope="module")
def expected(server):
    """What chat completions says to the same prompt, greedily: text and usage."""
    completion = server.client.chat.completions.create(
        model="smollm2", messages=[{"role": "user", "content": QUESTION}], temperature=0, max_tokens=24
    )
    return completion.choices[0].message.content, completion.usage


@pytest.fixture(scope="module")
def claude(server):
    with anthropic.Anthropic(base_url=server.address, api_key="secret", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def local(server):
    with closing(ollama.Client(host=server.address, headers={"Authorization": "Bearer secret"})) as client:
        yield client


class TestResponses:
    def test_an_answer(self, server, expected):
        response = server.client.responses.create(
            model="smollm2", input=QUESTION, temperature=0, max_output_tokens=24, metadata={"a": "b"}
        )
        text, usage = expected
        assert response.output_text == text and response.status in ("completed", "incomplete")
        assert (response.usage.input_tokens, response.usage.output_tokens) == (
            usage.prompt_tokens,
            usage.completion_tokens,
        )
        assert response.metadata == {"a": "b"} and response.store is False

    def test_a_stream_adds_up_to_the_answer(self, server, expected):
        with server.client.responses.stream(
            model="smollm2", input=QUESTION, temperature=0, max_output_tokens=24
        ) as stream:
            events = list(stream)
        final = events[-1].response
        assert final.output_text == expected[0]
        assert final.usage.output_tokens == expected[1].completion_tokens
        kinds = [event.type for event in events]
        assert kinds[:3] == ["response.created", "response.in_progress", "response.output_item.added"]
        assert kinds[-1] in ("response.completed", "response.incomplete")
        raw = server.client.responses.create(
            model="smollm2", input=QUESTION, temperature=0, max_output_tokens=24, stream=True
        )
        # How many deltas there are depends on when they arrive.
        numbers = [event.sequence_number for event in raw]
        assert numbers == list(range(len(numbers)))

    def test_a_cut_answer_is_incomplete(self, server):
        response = server.client.responses.create(model="smollm2", input="Tell a story.", max_output_tokens=4)
        assert response.status == "incomplete"
        assert response.incomplete_details.reason == "max_output_tokens"

    def test_instructions_and_items_are_the_messages(self, server):
        items = [
            {"role": "user", "content": [{"type": "input_text", "text": "Say A."}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "A"}]},
            {"role": "user", "content": "Say B."},
        ]
        response = server.client.responses.create(
            model="smollm2", instructions="Be short.", input=items, temperature=0, max_output_tokens=8
        )
        completion = server.client.chat.completions.create(
            model="smollm2",
            temperature=0,
            max_tokens=8,
            messages=[
                {"role": "system", "content": "Be short."},
                {"role": "user", "content": "Say A."},
                {"role": "assistant", "content": "A"},
                {"role": "user", "content": "Say B."},
            ],
        )
        assert response.output_text == completion.choices[0].message.content
        assert response.usage.input_tokens == completion.usage.prompt_tokens

    def test_a_schema(self, server):
        response = server.client.responses.create(
            model="smollm2",
            input=QUESTION,
            max_output_tokens=60,
            text={"format": {"type": "json_schema", "name": "capital", "schema": SCHEMA, "strict": True}},
        )
        assert set(json.loads(response.output_text)) == {"capital", "sure"}

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_tool_is_called_and_answered(self, server, stream):
        tool = {
            "type": "function",
            "name": "draw",
            "description": "Draws.",
            "parameters": DRAW,
            "strict": True,
        }
        options = {"model": "tools", "tools": [tool], "max_output_tokens": 100}
        asked = {**options, "input": "Draw.", "tool_choice": {"type": "function", "name": "draw"}}
        if stream:
            with server.client.responses.stream(**asked) as events:
                kinds = [event.type for event in events]
                response = events.get_final_response()
            assert "response.function_call_arguments.done" in kinds
        else:
            response = server.client.responses.create(**asked)
        call = next(item for item in response.output if item.type == "function_call")
        assert call.name == "draw" and json.loads(call.arguments)["colour"] in ("red", "blue")
        output = {"type": "function_call_output", "call_id": call.call_id, "output": "done"}
        history = [
            {"role": "user", "content": "Draw."},
            *(item.to_dict() for item in response.output),
            output,
        ]
        again = server.client.responses.create(**options, input=history)
        assert again.usage.input_tokens > response.usage.input_tokens

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"previous_response_id": "resp_1"}, "keeps no answers"),
            ({"background": True}, "keeps no answers"),
            ({"truncation": "auto"}, "never truncated"),
            ({"tools": [{"type": "web_search"}]}, "no tool 'web_search'"),
            ({"input": [{"role": "user", "content": [{"type": "input_image"}]}]}, "input_image"),
            ({"text": {"format": {"type": "grammar"}}}, "no format"),
        ],
    )
    def test_what_cannot_be_followed_is_refused(self, server, fields, words):
        with pytest.raises(openai.BadRequestError, match=words):
            server.client.responses.create(**{"model": "smollm2", "input": "Hi", **fields})


class TestMessages:
    def test_an_answer(self, claude, expected):
        message = claude.messages.create(
            model="smollm2",
            max_tokens=24,
            extra_body=GREEDY,
            messages=[{"role": "user", "content": QUESTION}],
        )
        text, usage = expected
        assert [block.text for block in message.content] == [text]
        read = message.usage.input_tokens + message.usage.cache_read_input_tokens
        assert (read, message.usage.output_tokens) == (usage.prompt_tokens, usage.completion_tokens)
        assert message.stop_reason in ("end_turn", "max_tokens")

    def test_a_stream_adds_up_to_the_answer(self, claude, expected):
        with claude.messages.stream(
            model="smollm2",
            max_tokens=24,
            extra_body=GREEDY,
            messages=[{"role": "user", "content": QUESTION}],
        ) as stream:
            parts = list(stream.text_stream)
            final = stream.get_final_message()
        assert "".join(parts) == final.content[0].text == expected[0] and len(parts) > 1
        assert final.usage.output_tokens == expected[1].completion_tokens
        assert final.usage.input_tokens + final.usage.cache_read_input_tokens == expected[1].prompt_tokens

    def test_system_blocks_and_stop_sequences(self, claude, server):
        message = claude.messages.create(
            model="smollm2",
            max_tokens=30,
            extra_body=GREEDY,
            system=[{"type": "text", "text": "Be short.", "cache_control": {"type": "ephemeral"}}],
            messages=[{"role": "user", "content": [{"type": "text", "text": "Count: one two three"}]}],
            stop_sequences=["e"],
        )
        completion = server.client.chat.completions.create(
            model="smollm2",
            max_tokens=30,
            extra_body=GREEDY,
            stop=["e"],
            messages=[
                {"role": "system", "content": "Be short."},
                {"role": "user", "content": "Count: one two three"},
            ],
        )
        assert "".join(block.text for block in message.content) == completion.choices[0].message.content

    def test_an_answer_goes_on_from_its_beginning(self, claude):
        message = claude.messages.create(
            model="smollm2",
            max_tokens=6,
            extra_body=GREEDY,
            messages=[
                {"role": "user", "content": QUESTION},
                {"role": "assistant", "content": "The capital of France is"},
            ],
        )
        assert "Paris" in message.content[0].text and not message.content[0].text.startswith("The capital")

    @pytest.mark.parametrize("stream", [False, True])
    def test_a_tool_is_used_and_answered(self, claude, stream):
        tool = {"name": "draw", "description": "Draws.", "input_schema": DRAW}
        options = {"model": "tools", "max_tokens": 100, "tools": [tool]}
        asked = {
            "messages": [{"role": "user", "content": "Draw."}],
            "tool_choice": {"type": "tool", "name": "draw"},
        }
        if stream:
            with claude.messages.stream(**options, **asked) as events:
                message = events.get_final_message()
        else:
            message = claude.messages.create(**options, **asked)
        use = next(block for block in message.content if block.type == "tool_use")
        assert use.name == "draw" and use.input["colour"] in ("red", "blue")
        assert message.stop_reason == "tool_use"
        result = {"type": "tool_result", "tool_use_id": use.id, "content": [{"type": "text", "text": "done"}]}
        again = claude.messages.create(
            **options,
            messages=[
                *asked["messages"],
                {"role": "assistant", "content": [block.to_dict() for block in message.content]},
                {"role": "user", "content": [result]},
            ],
        )
        read = [m.usage.input_tokens + m.usage.cache_read_input_tokens for m in (message, again)]
        assert read[1] > read[0]

    def test_tokens_are_counted_before_a_request(self, claude):
        asked = {
            "model": "tools",
            "system": "Be short.",
            "messages": [{"role": "user", "content": "Draw."}],
            "tools": [{"name": "draw", "description": "Draws.", "input_schema": DRAW}],
        }
        message = claude.messages.create(**asked, max_tokens=1)
        read = message.usage.input_tokens + message.usage.cache_read_input_tokens
        assert claude.messages.count_tokens(**asked).input_tokens == read

    def test_errors_are_those_of_the_api(self, claude, server):
        with pytest.raises(anthropic.NotFoundError) as missing:
            claude.messages.create(model="other", max_tokens=1, messages=[{"role": "user", "content": "Hi"}])
        assert missing.value.body["error"]["type"] == "not_found_error"
        with pytest.raises(anthropic.BadRequestError, match="web_search"):
            claude.messages.create(
                model="smollm2",
                max_tokens=1,
                messages=[{"role": "user", "content": "Hi"}],
                tools=[{"type": "web_search_20250305", "name": "web_search"}],
            )
        stranger = anthropic.Anthropic(base_url=server.address, api_key="wrong", max_retries=0)
        with stranger, pytest.raises(anthropic.AuthenticationError):
            stranger.messages.create(
                model="smollm2", max_tokens=1, messages=[{"role": "user", "content": "Hi"}]
            )


class TestOllama:
    def test_an_answer_and_its_stream(self, local, expected):
        asked = {
            "model": "smollm2:latest",
            "messages": [{"role": "user", "content": QUESTION}],
            "options": {"temperature": 0, "num_predict": 24, "num_ctx": 4096},
        }
        text, usage = expected
        answer = local.chat(**asked)
        assert answer.message.content == text and answer.done_reason in ("stop", "length")
        assert (answer.prompt_eval_count, answer.eval_count) == (usage.prompt_tokens, usage.completion_tokens)
        parts = list(local.chat(**asked, stream=True))
        assert "".join(part.message.content for part in parts) == text and len(parts) > 2
        assert [part.done for part in parts] == [False] * (len(parts) - 1) + [True]
        assert parts[-1].eval_count == usage.completion_tokens and parts[-1].eval_duration > 0

    def test_generate(self, local, expected):
        options = {"temperature": 0, "num_predict": 24}
        assert local.generate("smollm2", QUESTION, options=options).response == expected[0]
        parts = list(local.generate("smollm2", QUESTION, options=options, stream=True))
        assert "".join(part.response for part in parts) == expected[0]
        raw = local.generate("smollm2", "One, two, three, four,", raw=True, options=options).response
        assert "five" in raw
        assert local.generate("smollm2", "").done_reason == "load"

    def test_a_schema_and_a_tool(self, local):
        answer = local.chat(
            "smollm2", [{"role": "user", "content": QUESTION}], format=SCHEMA, options={"num_predict": 60}
        )
        assert set(json.loads(answer.message.content)) == {"capital", "sure"}
        tool = {"type": "function", "function": {"name": "draw", "description": "Draws.", "parameters": DRAW}}
        call = {"function": {"name": "draw", "arguments": {"colour": "red"}}}
        history = [
            {"role": "user", "content": "Draw."},
            {"role": "assistant", "content": "", "tool_calls": [call]},
            {"role": "tool", "tool_name": "draw", "content": "done"},
        ]
        longer = local.chat("tools", history, tools=[tool], options={"num_predict": 4})
        assert (
            longer.prompt_eval_count
            > local.chat("tools", history[:1], tools=[tool], options={"num_predict": 4}).prompt_eval_count
        )

    def test_models_are_listed_and_shown(self, local):
        listed = {model.model: model for model in local.list().models}
        assert set(listed) == {"tools", "smollm2"}
        assert listed["smollm2"].modified_at.year > 2020
        assert listed["smollm2"].size > 9e7 and listed["smollm2"].details.parameter_size == "135M"
        shown = local.show("smollm2")
        assert shown.details.family == "llama" and "completion" in shown.capabilities
        assert shown.modelinfo["llama.context_length"] == 8192
        assert "tools" in local.show("tools").capabilities

    def test_embed(self, local, server):
        vector = local.embed("tools", ["Draw."]).embeddings[0]
        same = server.client.embeddings.create(model="tools", input="Draw.").data[0].embedding
        assert vector == pytest.approx(same, abs=1e-6)

    @pytest.mark.parametrize(
        ("fields", "words"),
        [
            ({"options": {"mirostat": 2}}, "mirostat"),
            ({"logprobs": True}, "/v1/chat/completions"),
            ({"messages": [{"role": "user", "content": "Hi", "images": ["aaaa"]}]}, "no images"),
        ],
    )
    def test_what_cannot_be_followed_is_refused(self, local, fields, words):
        with pytest.raises(ollama.ResponseError, match=words) as refused:
            local.chat(**{"model": "smollm2", "messages": [{"role": "user", "content": "Hi"}], **fields})
        assert refused.value.status_code == 400

    def test_no_key_no_answer(self, server):
        with (
            closing(ollama.Client(host=server.address)) as client,
            pytest.raises(ollama.ResponseError) as refused,
        ):
            client.list()
        assert refused.value.status_code == 401
