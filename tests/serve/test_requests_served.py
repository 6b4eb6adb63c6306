"""Fields that clients send, on both engines: penalties, continued messages, schemas, emoji, long queues."""

import json
import socket
import time
import urllib.error
import urllib.request

import openai
import pytest
import torch
from chat_templates import GEMMA
from pydantic import AnyUrl, TypeAdapter
from running_server import RunningServer
from tool_models import CONTEXT, make_model, make_tool_model

from stillhouse.models import load_weights, token_bytes

pytestmark = pytest.mark.slow
BOTH = pytest.mark.parametrize("model", ["weights", "file"])
HELLO = [{"role": "user", "content": "Say hello."}]
WEATHER = {
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"city": {"enum": ["Bergen", "Oslo"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}
TOOLS = [{"type": "function", "function": WEATHER}]
QUEUE = 6


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return tmp_path_factory.mktemp("served") / "model"


@pytest.fixture(scope="module")
def server(directory, tmp_path_factory):
    _, file = make_tool_model(directory)
    plain = make_model(tmp_path_factory.mktemp("plain") / "model", GEMMA)
    running = RunningServer(
        f"weights={directory}", f"file={file}", f"plain={plain}", options=["--queue", str(QUEUE)]
    )
    yield running
    status, log = running.stop()
    assert status == 0
    assert "Traceback" not in log and "rror" not in log, log


@pytest.fixture(scope="module")
def weights(server, directory):
    return load_weights(str(directory), dtype="float32")


def post(server, path, body):
    data = json.dumps(body).encode()
    request = urllib.request.Request(
        server.address + path, data=data, headers={"content-type": "application/json"}
    )
    try:
        with urllib.request.urlopen(request, timeout=60) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def model_logits(weights, ids):
    with torch.inference_mode():
        return weights.model(torch.tensor([ids])).logits[0]


def test_every_token_of_a_gguf_answer_is_counted_and_scored(server, weights):
    """A random byte-level model writes many broken characters; the scores are those of the weights."""
    prompt = [20, 30, 40, 50]
    for seed in range(3):
        options = {"model": "file", "prompt": prompt, "max_tokens": 30, "seed": seed, "temperature": 1.5}
        scored = server.client.completions.create(**options, logprobs=2)
        plain = server.client.completions.create(**options)
        choice = scored.choices[0]
        count = scored.usage.completion_tokens
        assert plain.usage.completion_tokens == count == len(choice.logprobs.tokens)
        assert choice.finish_reason == plain.choices[0].finish_reason
        assert count == 30 or choice.finish_reason == "stop"
        _, tokens = post(server, "/v1/chat/completions", {
            "model": "file", "messages": HELLO, "max_tokens": 12, "seed": seed, "logprobs": True,
            "top_logprobs": 1, "temperature": 1.5,
        })  # fmt: skip
        content = tokens["choices"][0]["logprobs"]["content"]
        assert len(content) == tokens["usage"]["completion_tokens"]
        # From the bytes of the tokens back to ids, and their scores from the float32 weights.
        ids = token_ids(weights, content)
        prompt_ids = post(server, "/tokenize", {"model": "file", "messages": HELLO})[1]["tokens"]
        logp = model_logits(weights, [*prompt_ids, *ids])[len(prompt_ids) - 1 : -1].log_softmax(-1)
        expected = logp.gather(1, torch.tensor(ids)[:, None])[:, 0].tolist()
        assert [entry["logprob"] for entry in content] == pytest.approx(expected, abs=0.02)


@BOTH
def test_tokens_of_the_prompt_that_were_cached_are_told(server, model):
    messages = [{"role": "user", "content": f"A long enough question for {model}, asked three times."}]
    for number, logprobs in enumerate((False, False, True)):
        reply = server.client.chat.completions.create(
            model=model, messages=messages, max_tokens=4, logprobs=logprobs
        )
        details = reply.usage.prompt_tokens_details
        assert details.cached_tokens > 20 or number == 0
        assert details.cached_tokens < reply.usage.prompt_tokens


def token_ids(weights, content):
    table = {piece: number for number, piece in enumerate(token_bytes(weights.tokenizer))}
    return [table[bytes(entry["bytes"])] for entry in content]


@BOTH
@pytest.mark.parametrize(
    "fields",
    [
        {"frequency_penalty": -0.6},
        {"repetition_penalty": 0.6},
        {"presence_penalty": -1.5, "logit_bias": {"60": 3, "20": -100}},
    ],
)
def test_penalties_and_biases_are_honoured_by_both_engines(server, weights, model, fields):
    """Each token of a greedy answer is the best by the formulas, computed from the float32 weights.

    The penalties are such that this random model, which never repeats itself, does.
    """
    body = {"model": model, "messages": HELLO, "temperature": 0, "max_tokens": 30, "logprobs": True, **fields}
    content = post(server, "/v1/chat/completions", body)[1]["choices"][0]["logprobs"]["content"]
    prompt = post(server, "/tokenize", {"model": model, "messages": HELLO})[1]["tokens"]
    ids = token_ids(weights, content)
    logits = model_logits(weights, [*prompt, *ids])[len(prompt) - 1 :]
    for index, chosen in enumerate(ids):
        scores, answer = logits[index].tolist(), ids[:index]
        if (repetition := fields.get("repetition_penalty", 1)) != 1:
            for token in {*prompt, *answer}:
                scores[token] *= repetition if scores[token] < 0 else 1 / repetition
        for token in set(answer):
            scores[token] -= answer.count(token) * fields.get("frequency_penalty", 0)
            if model == "weights" or token not in prompt:  # llama.cpp: not for tokens of the prompt
                scores[token] -= fields.get("presence_penalty", 0)
        for token, bias in fields.get("logit_bias", {}).items():
            scores[int(token)] += bias
        assert scores[chosen] >= max(scores) - 0.3, index  # bfloat16 rounds to an eighth of this
    assert len(set(ids)) < len(ids)


def test_penalties_that_llama_cpp_cannot_combine_are_refused(server):
    fields = {"messages": HELLO, "repetition_penalty": 1.2, "presence_penalty": 1.0, "max_tokens": 2}
    assert post(server, "/v1/chat/completions", {"model": "weights", **fields})[0] == 200
    status, reply = post(server, "/v1/chat/completions", {"model": "file", **fields})
    assert status == 400 and reply["error"]["param"] == "repetition_penalty"
    status, reply = post(server, "/v1/chat/completions", {
        "model": "file", "messages": HELLO, "logit_bias": {"999999": 1}
    })  # fmt: skip
    assert status == 400 and reply["error"]["param"] == "logit_bias"


@BOTH
def test_a_url_is_enforced_and_white_space_is_bounded(server, model):
    schema = {
        "type": "object",
        "properties": {"u": {"type": "string", "format": "uri", "maxLength": 12}, "n": {"enum": [1, 2]}},
        "required": ["u", "n"],
        "additionalProperties": False,
    }
    blanks = [str(post(server, "/tokenize", {"prompt": blank})[1]["tokens"][-1]) for blank in " \n\t"]
    reply = server.client.chat.completions.create(
        model=model, messages=HELLO, n=4, temperature=1.0, max_tokens=400, seed=1,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        # Without a bound, a model that likes white space would never end.
        logit_bias=dict.fromkeys(blanks, 20),
    )  # fmt: skip
    for choice in reply.choices:
        assert choice.finish_reason == "stop", choice.message.content
        value = json.loads(choice.message.content)
        assert TypeAdapter(AnyUrl).validate_python(value["u"]) and value["n"] in (1, 2)
        assert max(map(len, choice.message.content.replace("\n", " ").split('"')[2::2])) < 80


@BOTH
def test_a_url_among_the_arguments_of_a_tool_is_enforced(server, model):
    parameters = {
        "type": "object",
        "properties": {"u": {"type": "string", "format": "uri", "maxLength": 12}},
        "required": ["u"],
        "additionalProperties": False,
    }
    tool = {"type": "function", "function": {"name": "open", "parameters": parameters}}
    reply = server.client.chat.completions.create(
        model=model, messages=HELLO, tools=[tool], tool_choice="required", max_tokens=200, seed=1
    )
    (call,) = reply.choices[0].message.tool_calls
    assert TypeAdapter(AnyUrl).validate_python(json.loads(call.function.arguments)["u"])


def test_a_schema_that_llama_cpp_drops_is_refused_by_llama_cpp(server):
    """`duration` is followed by both copies of llguidance, `uri-reference` by neither."""
    for form, status in (("duration", 200), ("uri-reference", 400)):
        got, reply = post(server, "/v1/chat/completions", {
            "model": "file", "messages": HELLO, "max_tokens": 3,
            "json_schema": {"type": "string", "format": form},
        })  # fmt: skip
        assert got == status, reply


@BOTH
def test_a_message_is_continued(server, model):
    begun = {"role": "assistant", "content": "The rain in <|im_end|> Spain"}
    tokens = post(server, "/tokenize", {
        "model": model, "messages": [*HELLO, begun], "continue_final_message": True,
        "return_token_strs": True,
    })[1]  # fmt: skip
    text = "".join(tokens["token_strs"])
    assert text.endswith("assistant\nThe rain in <|im_end|> Spain")
    end_of_turn = post(server, "/tokenize", {"model": model, "prompt": "<|im_end|>"})[1]["tokens"][-1]
    assert tokens["tokens"].count(end_of_turn) == 1  # of the user's turn; the client's spelling stays text
    options = {"model": model, "temperature": 0, "max_tokens": 6}
    chat = server.client.chat.completions.create(
        **options, messages=[*HELLO, begun], extra_body={"continue_final_message": True}
    )
    assert chat.usage.prompt_tokens == tokens["count"]
    completion = server.client.completions.create(**options, prompt=tokens["tokens"])
    assert chat.choices[0].message.content.strip("\n") == completion.choices[0].text.strip("\n")


def test_variables_of_the_template_are_used_or_refused(server):
    def tokens(**fields):
        return post(server, "/v1/chat/completions", {
            "model": "weights", "messages": HELLO, "max_tokens": 1, **fields
        })  # fmt: skip

    plain = tokens()[1]["usage"]["prompt_tokens"]
    assert tokens(chat_template_kwargs={"enable_thinking": False})[1]["usage"]["prompt_tokens"] >= plain
    for name in ("no_such_switch", "messages", "add_generation_prompt"):
        status, reply = tokens(chat_template_kwargs={name: True})
        assert status == 400 and reply["error"]["param"] == f"chat_template_kwargs.{name}"


def test_a_model_without_tools_in_its_template_is_asked_for_calls(server):
    reply = server.client.chat.completions.create(
        model="plain", messages=HELLO, tools=TOOLS, tool_choice="required", max_tokens=100, seed=1
    )
    (call,) = reply.choices[0].message.tool_calls
    assert call.function.name == "weather" and json.loads(call.function.arguments)["city"] in (
        "Bergen",
        "Oslo",
    )
    result = {"role": "tool", "tool_call_id": call.id, "content": "wet"}
    answered = server.client.chat.completions.create(
        model="plain", tools=TOOLS, max_tokens=4, messages=[*HELLO, reply.choices[0].message, result],
    )  # fmt: skip
    assert answered.usage.prompt_tokens > reply.usage.prompt_tokens


@BOTH
def test_a_thousand_texts_are_embedded_on_a_queue_of_six(server, model):
    reply = server.client.embeddings.create(model=model, input=["a", "bc"] * 500)
    assert len(reply.data) == 1000 and reply.data[0].embedding == reply.data[2].embedding
    assert reply.data[0].embedding != reply.data[1].embedding
    assert reply.usage.prompt_tokens >= 1000


def test_more_answers_than_places_are_worked_off(server):
    prompts = [f"text {number}" for number in range(QUEUE * 2)]
    reply = server.client.completions.create(model="file", prompt=prompts, max_tokens=2)
    assert [choice.index for choice in reply.choices] == list(range(len(prompts)))
    assert server.idle()


def test_embeddings_stop_when_their_client_goes_away(server):
    body = json.dumps({"model": "weights", "input": ["word " * 600] * 1500}).encode()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        head = "POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        connection.sendall(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
        time.sleep(0.5)
    assert server.idle()


def test_models_tell_their_context(server):
    for model in ("weights", "file"):
        listed = server.get(f"/v1/models/{model}")
        assert listed["max_model_len"] == listed["context_length"] == listed["context_window"]
        assert listed["meta"]["n_ctx"] == listed["max_model_len"] <= CONTEXT == listed["meta"]["n_ctx_train"]
        assert listed["meta"]["n_params"] > 1000 and listed["meta"]["n_embd"] == 32
        with pytest.raises(openai.BadRequestError, match=f"the model's context {listed['max_model_len']}"):
            server.client.completions.create(model=model, prompt=[5] * listed["max_model_len"])


@BOTH
def test_texts_become_tokens_and_texts_again(server, model):
    text = "naïve 東京 🙂"
    of_vllm = post(server, "/tokenize", {"model": model, "prompt": text, "return_token_strs": True})[1]
    assert of_vllm["count"] == len(of_vllm["tokens"]) == len(of_vllm["token_strs"])
    of_llama = post(server, "/tokenize", {"model": model, "content": text, "with_pieces": True})[1]
    raw = b"".join(
        bytes(token["piece"]) if isinstance(token["piece"], list) else token["piece"].encode()
        for token in of_llama["tokens"]
    )
    assert raw.decode() == text
    back = post(server, "/detokenize", {"model": model, "tokens": [t["id"] for t in of_llama["tokens"]]})[1]
    assert back == {"prompt": text, "content": text}
    for body in ({}, {"prompt": "a", "content": "a"}):
        assert post(server, "/tokenize", body)[0] == 400
    assert post(server, "/detokenize", {"tokens": [10**6]})[0] == 400


def test_prometheus_counters(server):
    def metrics():
        with urllib.request.urlopen(f"{server.address}/metrics", timeout=30) as reply:
            assert reply.headers["content-type"].startswith("text/plain; version=0.0.4")
            lines = reply.read().decode().splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if line[0] != "#"}

    before = metrics()
    reply = server.client.chat.completions.create(model="weights", messages=HELLO, max_tokens=3, n=2)
    after = metrics()

    def growth(name):
        return after[name] - before.get(name, 0)

    assert growth('still_generated_tokens_total{model="weights"}') == reply.usage.completion_tokens
    assert growth('still_prompt_tokens_total{model="weights"}') == reply.usage.prompt_tokens
    assert growth('still_requests_total{path="/v1/chat/completions",status="200"}') == 1
    assert growth('still_answer_duration_seconds_count{model="weights"}') == 1
    assert after['still_answer_duration_seconds_bucket{model="weights",le="+Inf"}'] >= 1
    assert after['still_model_loaded{model="weights"}'] == 1 and after["still_queue_size"] == QUEUE
