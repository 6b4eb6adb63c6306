"""The API backend against a real server on loopback that misbehaves."""

from __future__ import annotations

import asyncio
import json

import pytest
from misbehaving_server import MODEL, Teacher, answer_to, error, serving
from starlette.responses import JSONResponse

from stillhouse.errors import (
    ApiError,
    AuthenticationError,
    ContextLengthError,
    CreditError,
    ModelError,
    ModelNotFoundError,
    ParameterError,
    PromptRefusedError,
)
from stillhouse.models import Reply, Request, Sampling, open_model
from stillhouse.models.backends.openai_api import ApiModel
from stillhouse.models.backends.retry import TemporaryError


def ask(
    teacher, *prompts, timeout_s=20.0, retries=4, sampling=None, history=(), query="", unset=(), **options
):
    """The results of one call with ``prompts``, and how often the server pushed back."""
    sampling = sampling or Sampling(seed=1, max_tokens=64)

    async def run(url):
        model = open_model(f"api:{url}{query}#{MODEL}", timeout_s=timeout_s, retries=retries, **options)
        try:
            messages = [[*history, {"role": "user", "content": prompt}] for prompt in prompts]
            requests = [Request(str(n), m, sampling, api_defaults=unset) for n, m in enumerate(messages)]
            return await model.generate(requests), model.pushbacks
        finally:
            await model.close()

    with serving(teacher) as url:
        return asyncio.run(run(url))


def test_an_answer_carries_everything_the_server_says():
    [reply], pushbacks = ask(
        Teacher(), "why [think]", sampling=Sampling(seed=1, max_tokens=64, top_logprobs=2)
    )
    assert isinstance(reply, Reply)
    assert reply.text == answer_to("why [think]", 1)
    assert reply.reasoning == "I was asked 'why [think]'."
    assert reply.finish_reason == "stop"
    assert (reply.prompt_tokens, reply.completion_tokens) == (2, len(reply.text.split()))
    assert str(reply.request_id).startswith("req-")
    assert reply.model == MODEL
    assert reply.top_logprobs is not None
    assert [item["token"] for item in reply.top_logprobs] == reply.text.split()
    assert len(reply.top_logprobs[0]["top_logprobs"]) == 2
    assert pushbacks == 0


def test_what_is_sent():
    teacher = Teacher()
    history = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b", "reasoning_content": "secret"},
    ]
    sampling = Sampling(temperature=0.5, top_p=0.9, top_k=7, max_tokens=9, seed=3, stop=("END",))
    ask(teacher, "c", sampling=sampling, history=history)
    [body] = teacher.bodies
    assert body["messages"] == [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
    ]
    assert body["model"] == MODEL
    expected = {"temperature": 0.5, "top_p": 0.9, "top_k": 7, "max_tokens": 9, "seed": 3, "stop": ["END"]}
    assert {key: body[key] for key in expected} == expected
    assert "logprobs" not in body


PASSING = ["429", "429date", "500", "503", "cut", "json", "empty", "error200", "halfway", "408", "409"]


@pytest.mark.parametrize("fault", PASSING)
def test_a_passing_failure_is_tried_again(fault):
    teacher = Teacher()
    prompt = f"ask [fault:{fault}x2]"
    [reply], pushbacks = ask(teacher, prompt)
    assert isinstance(reply, Reply)
    assert reply.text == answer_to(prompt, 1)
    assert len(teacher.arrivals) == 3
    assert teacher.served[prompt] == 1
    assert pushbacks == (2 if fault in ("429", "429date", "503") else 0)


def test_a_hanging_request_is_given_up_and_tried_again():
    teacher = Teacher()
    [reply], pushbacks = ask(teacher, "ask [fault:hangx1]", timeout_s=0.7)
    assert isinstance(reply, Reply)
    assert pushbacks == 1
    (_, first), (_, second) = teacher.arrivals
    assert 0.7 <= second - first < 10


@pytest.mark.parametrize(("fault", "least"), [("429", 1.0), ("429date", 0.9)])
def test_retry_after_is_obeyed(fault, least):
    # A date has whole seconds, so the pause can be up to a second shorter than intended.
    teacher = Teacher(retry_after="1" if fault == "429" else "2")
    ask(teacher, f"ask [fault:{fault}x1]")
    (_, first), (_, second) = teacher.arrivals
    assert second - first >= least


def test_a_server_that_asks_for_an_hour_is_given_up_at_once():
    teacher = Teacher(retry_after="3600")
    [error], _ = ask(teacher, "ask [fault:429]")
    assert isinstance(error, ApiError)
    assert "3600 s" in str(error)
    assert len(teacher.arrivals) == 1


def test_a_lasting_failure_is_an_error_of_that_request_alone():
    teacher = Teacher()
    (good, bad), _ = ask(teacher, "fine", "ask [fault:500]", retries=2)
    assert isinstance(good, Reply)
    assert isinstance(bad, ApiError)
    assert "500" in str(bad)
    assert "2 retries" in str(bad)
    assert bad.hint
    assert sum(prompt != "fine" for prompt, _ in teacher.arrivals) == 3


@pytest.mark.parametrize("fault", ["401", "403"])
def test_a_refused_key_stops_at_once(fault):
    teacher = Teacher()
    with pytest.raises(AuthenticationError, match="refuses the key") as caught:
        ask(teacher, f"ask [fault:{fault}]")
    assert "OPENAI_API_KEY is not set" in (caught.value.hint or "")
    assert len(teacher.arrivals) == 1


def test_an_unknown_model_stops_at_once():
    with pytest.raises(ModelNotFoundError, match=MODEL):
        ask(Teacher(), "ask [fault:404]")


REFUSED = {"context": ContextLengthError, "400": ModelError, "policy": PromptRefusedError}


@pytest.mark.parametrize("fault", REFUSED)
def test_a_refused_request_is_not_tried_again(fault):
    teacher = Teacher()
    [error], _ = ask(teacher, f"ask [fault:{fault}]")
    assert type(error) is REFUSED[fault]
    assert len(teacher.arrivals) == 1


@pytest.mark.parametrize("fault", ["402", "quota"])
def test_an_account_without_credit_stops_at_once(fault):
    teacher = Teacher()
    with pytest.raises(CreditError, match=r"Insufficient Balance|exceeded your current quota"):
        ask(teacher, f"ask [fault:{fault}]")
    assert len(teacher.arrivals) == 1


UNKNOWN_SEED = JSONResponse(
    {
        "detail": [
            {"type": "extra_forbidden", "loc": ["body", "seed"], "msg": "Extra inputs are not permitted"}
        ]
    },
    status_code=422,
)
OLD_LIMIT = error(
    400,
    "Unsupported parameter: 'max_tokens' is not supported with this model. "
    "Use 'max_completion_tokens' instead.",
    "unsupported_parameter",
)
NOT_BOTH = error(
    400, "`temperature` and `top_p` cannot both be specified for this model. Please use only one."
)


def test_a_refused_seed_and_limit_are_adapted_once_and_remembered(capsys):
    teacher = Teacher(refuses={("seed",): UNKNOWN_SEED, ("max_tokens",): OLD_LIMIT})
    [first], _ = ask(teacher, "one", retries=0)
    assert isinstance(first, Reply), first
    assert first.not_sent == ("seed",)
    sent = teacher.bodies[-1]
    assert sent["max_completion_tokens"] == 64
    assert {"seed", "max_tokens"}.isdisjoint(sent)
    assert len(teacher.bodies) == 3
    printed = capsys.readouterr().err
    assert "refuses `seed`, so it is no longer sent" in printed
    assert "sending `max_completion_tokens`" in printed

    teacher = Teacher(refuses=teacher.refuses)
    replies, _ = ask(teacher, *map(str, range(8)), retries=0)
    assert all(isinstance(reply, Reply) for reply in replies)
    assert len(teacher.bodies) <= 3 * 8
    assert capsys.readouterr().err.count("refuses `seed`") == 1


def test_what_is_not_set_is_not_sent():
    teacher = Teacher(refuses={("temperature", "top_p"): NOT_BOTH})
    unset = ("temperature", "top_p")
    [reply], _ = ask(teacher, "a", unset=unset)
    assert isinstance(reply, Reply)
    assert reply.not_sent == unset
    assert set(unset).isdisjoint(teacher.bodies[0])
    [reply], _ = ask(teacher, "b", sampling=Sampling(temperature=0.5), unset=("top_p",))
    assert isinstance(reply, Reply)
    assert teacher.bodies[1]["temperature"] == 0.5
    # Greedy decoding has no nucleus.
    [reply], _ = ask(teacher, "c", sampling=Sampling(temperature=0.0))
    assert isinstance(reply, Reply)


def test_a_setting_of_the_recipe_that_is_refused_is_an_error_with_the_servers_words():
    teacher = Teacher(refuses={("temperature", "top_p"): NOT_BOTH})
    [refused], _ = ask(teacher, "a", sampling=Sampling(temperature=0.5, top_p=0.9))
    assert isinstance(refused, ParameterError)
    assert "cannot both be specified" in str(refused)
    assert "collect.temperature or collect.top_p" in str(refused.hint)
    assert len(teacher.bodies) == 1


def test_further_fields_are_sent_and_null_leaves_one_out():
    teacher = Teacher()
    variables = {"enable_thinking": False, "reasoning_effort": "low"}
    extra = {"thinking": {"type": "disabled"}, "seed": None, "max_tokens": None}
    [reply], _ = ask(teacher, "a", variables=variables, extra_body=extra)
    [body] = teacher.bodies
    assert body["chat_template_kwargs"] == {"enable_thinking": False}
    assert body["reasoning_effort"] == "low"
    assert body["thinking"] == {"type": "disabled"}
    assert {"seed", "max_tokens", "max_completion_tokens"}.isdisjoint(body)
    assert isinstance(reply, Reply)
    assert reply.not_sent == ("seed",)


def test_azures_query_follows_the_path_and_its_key_has_a_header_of_its_own(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    teacher = Teacher()
    [reply], _ = ask(teacher, "a", query="/openai/deployments/gpt?api-version=2025-01-01")
    assert isinstance(reply, Reply), reply
    [(path, query, headers)] = teacher.addresses
    assert path == "/v1/openai/deployments/gpt/chat/completions"
    assert query == "api-version=2025-01-01"
    assert headers["api-key"] == "secret"


def parsed(body: dict | str) -> Reply:
    """The client's result for a body with status 200."""
    client = open_model(f"api:http://127.0.0.1:9/v1#{MODEL}")
    assert isinstance(client, ApiModel)
    request = Request("1", [{"role": "user", "content": "hi"}], Sampling(max_tokens=5))
    return client._reply(request, {}, body if isinstance(body, str) else json.dumps(body), {})


def message(finish_reason="stop", **fields) -> dict:
    return {"choices": [{"message": fields, "finish_reason": finish_reason}]}


ANSWER = message(content="yes")
OTHER_FORMS = {
    "content a number": message(content=5),
    "an image among the parts": message(content=[{"type": "image_url", "image_url": {"url": "x"}}]),
    "a part without text": message(content=[{"type": "text"}]),
    "logprobs a list": {"choices": [{"message": {"content": "a"}, "logprobs": [1]}]},
}
BROKEN = {
    "choices an object": {"choices": {"0": 1}},
    "choices of text": {"choices": ["x"]},
    "choices of nothing": {"choices": [None]},
    "nested too deeply": "[" * 100_000,
    "a number of 5,000 digits": '{"x": ' + "1" * 5000 + "}",
    "half an answer": message("error", content="The answer"),
}


@pytest.mark.parametrize("body", BROKEN.values(), ids=BROKEN.keys())
def test_a_broken_reply_is_a_failure_that_may_pass(body):
    with pytest.raises(TemporaryError, match="answer"):
        parsed(body)


@pytest.mark.parametrize("body", OTHER_FORMS.values(), ids=OTHER_FORMS.keys())
def test_an_answer_that_cannot_be_read_is_not_paid_for_again(body):
    with pytest.raises(ModelError, match="unknown form"):
        parsed(body)


USAGES = ([1], "many", {"prompt_tokens": "five"}, {"prompt_tokens": 3 * 10**9}, None)


@pytest.mark.parametrize("usage", USAGES)
def test_a_usage_without_numbers_is_estimated_and_the_answer_kept(usage):
    reply = parsed(ANSWER | {"usage": usage})
    assert (reply.text, reply.prompt_tokens, reply.completion_tokens) == ("yes", 1, 1)


HM = [{"type": "text", "text": "Hm."}]
THOUGHTS = {
    "Magistral's parts": {
        "content": [{"type": "thinking", "thinking": HM}, {"type": "text", "text": "Yes."}]
    },
    "Anthropic's parts": {
        "content": [{"type": "thinking", "thinking": "Hm."}, {"type": "text", "text": "Yes."}]
    },
    "Gemini's parts": {"content": [{"text": "Hm.", "thought": True}, {"text": "Yes."}]},
    "reasoning_content": {"content": "Yes.", "reasoning_content": "Hm."},
    "reasoning": {"content": "Yes.", "reasoning": "Hm."},
    "thinking": {"content": "Yes.", "thinking": "Hm."},
    "thought": {"content": "Yes.", "thought": "Hm."},
    "thinking_blocks": {"content": "Yes.", "thinking_blocks": [{"type": "thinking", "thinking": "Hm."}]},
    "reasoning_details": {
        "content": "Yes.",
        "reasoning_details": [{"type": "reasoning.text", "text": "Hm."}],
    },
    "in the text": {"content": "<think>\nHm.\n</think>\n\nYes."},
    "a first name that is empty": {"content": "Yes.", "reasoning_content": "", "reasoning": "Hm."},
}


@pytest.mark.parametrize("fields", THOUGHTS.values(), ids=THOUGHTS.keys())
def test_thoughts_have_many_names(fields):
    reply = parsed(message(**fields))
    assert (reply.text, reply.reasoning) == ("Yes.", "Hm.")


def test_blank_lines_before_the_body_are_no_matter():
    """Gateways send them to keep a connection open while the model thinks."""
    assert parsed("\n \r\n\n" + json.dumps(ANSWER)).text == "yes"


@pytest.mark.parametrize(
    "content", [[{"type": "text", "text": "a"}], [{"type": "output_text", "text": "a"}], ["a"]]
)
def test_a_list_of_one_text_is_that_text(content):
    reply = parsed(message(content=content))
    assert (reply.text, reply.reasoning) == ("a", None)


def test_an_unknown_finish_reason_of_an_answer_as_long_as_allowed_is_a_cut():
    usage = {"usage": {"completion_tokens": 5}}
    assert parsed(message(None, content="a b c d e") | usage).finish_reason == "length"
    assert parsed(message(None, content="a") | {"usage": {"completion_tokens": 4}}).finish_reason == "unknown"
    assert parsed(message("done", content="a") | {"usage": {"completion_tokens": 4}}).finish_reason == "done"


def test_what_a_reply_holds_has_the_types_that_a_corpus_can_hold():
    usage = {"prompt_tokens": "5", "completion_tokens": 2.0}
    choice = {"message": {"content": "yes"}, "finish_reason": 3}
    reply = parsed({"id": 7, "model": 8, "usage": usage, "choices": [choice]})
    assert (reply.request_id, reply.model, reply.finish_reason) == ("7", "8", "3")
    assert (reply.prompt_tokens, reply.completion_tokens) == (5, 2)
    assert type(reply.completion_tokens) is int


def test_an_empty_answer_is_an_answer():
    [reply], _ = ask(Teacher(), "ask [fault:silent]")
    assert isinstance(reply, Reply)
    assert reply.text == ""


def test_nobody_listening_is_an_api_error():
    async def run():
        model = open_model("api:http://127.0.0.1:9/v1#x", retries=1)
        try:
            return await model.generate([Request("a", [{"role": "user", "content": "hi"}], Sampling())])
        finally:
            await model.close()

    [error] = asyncio.run(run())
    assert isinstance(error, ApiError)
    assert "127.0.0.1:9" in str(error)
    assert "Connection refused" in str(error)


def test_a_storm_of_faults_loses_and_doubles_nothing():
    teacher = Teacher(faults=0.4, seed=5, kinds=("429", "500", "cut", "json", "empty"))
    prompts = [f"question {n}" for n in range(40)]
    replies, pushbacks = ask(teacher, *prompts, retries=5)
    assert [reply.text for reply in replies if isinstance(reply, Reply)] == [answer_to(p, 1) for p in prompts]
    assert set(teacher.served.values()) == {1}
    assert len(teacher.arrivals) > 40
    assert pushbacks > 0


def test_a_remote_api_needs_a_key(monkeypatch):
    monkeypatch.delenv("MY_KEY", raising=False)
    with pytest.raises(AuthenticationError, match="MY_KEY"):
        open_model("api:https://example.invalid/v1#m", api_key_env="MY_KEY")
    monkeypatch.setenv("MY_KEY", "k")
    model = open_model("api:https://example.invalid/v1#m", api_key_env="MY_KEY")
    assert (
        model.fingerprint != open_model("api:https://example.invalid/v1#n", api_key_env="MY_KEY").fingerprint
    )
    assert "k" not in vars(model).values()
    assert model.can.generate
    assert not model.can.train


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "ALL_PROXY"])
def test_no_proxy_sees_what_is_meant_for_this_machine(monkeypatch, variable):
    """Nothing listens at the proxy's address: a request through it fails."""
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, "http://127.0.0.1:9")
    [reply], _ = ask(Teacher(), "why", retries=0)
    assert isinstance(reply, Reply), reply
