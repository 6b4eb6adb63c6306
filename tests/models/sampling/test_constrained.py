"""Constrained answers follow their JSON schema with any tokenizer, and do not affect other sequences."""

import json
import re
from urllib.parse import urlsplit

import numpy as np
import pytest
import torch
from test_continuous import finish
from transformers import LlamaConfig, LlamaForCausalLM

from stillhouse.errors import SchemaError
from stillhouse.models import Sampling, load_tokenizer, load_weights
from stillhouse.models.sampling.constrained import ConstraintFactory, validated_schema
from stillhouse.models.sampling.continuous import ContinuousSampler, LiveSequence

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 6},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
WIDTH = 49_152 + 64  # a model can have more columns than its tokenizer has tokens


@pytest.fixture(scope="module")
def tiny(tiny_teacher):
    return load_weights(str(tiny_teacher), dtype="float32")


@pytest.fixture(scope="module")
def smollm2():
    tokenizer, _ = load_tokenizer("embedded:smollm2")
    return tokenizer, ConstraintFactory(tokenizer, WIDTH, {2, 0})


def is_person(text):
    person = json.loads(text)
    return (
        list(person) == ["name", "age", "kind"]
        and isinstance(person["name"], str) and len(person["name"]) <= 6
        and type(person["age"]) is int and 0 <= person["age"] <= 120
        and person["kind"] in ("cat", "dog")
    )  # fmt: skip


def test_a_random_model_s_answers_follow_the_schema(tiny):
    constraints = ConstraintFactory(tiny.tokenizer, tiny.model.config.vocab_size, tiny.end_ids)
    sampler = ContinuousSampler(tiny.model, tiny.end_ids, slots=6, capacity=200, kept=2)
    everyone = [
        LiveSequence(
            (5, 6, 7),
            Sampling(temperature=heat, top_p=top_p, seed=seed, max_tokens=190),
            constraint=constraints.create(validated_schema(PERSON)),
        )
        for seed, (heat, top_p) in enumerate([(0, 1), (1.0, 1), (1.5, 0.9), (2.0, 1), (1, 0.5), (0.7, 0.95)])
    ]
    for one in everyone:
        sampler.add(one)
    reasons = {id(drawn.sequence): drawn.finish_reason for drawn in finish(sampler)}
    for one in everyone:
        assert reasons[id(one)] == "stop"
        assert is_person(tiny.tokenizer.decode(one.ids, skip_special_tokens=True))


def test_a_neighbour_without_a_schema_gets_exactly_what_it_gets_alone(tiny):
    constraints = ConstraintFactory(tiny.tokenizer, tiny.model.config.vocab_size, tiny.end_ids)

    def run(*constrained):
        sampler = ContinuousSampler(tiny.model, set(), slots=6, capacity=200, kept=2)
        free = [
            LiveSequence(
                (9, 8, 7), Sampling(temperature=1, top_p=0.9, seed=1, max_tokens=40), top_logprobs=2
            ),
            LiveSequence((4, 4), Sampling(temperature=0, max_tokens=40), top_logprobs=0),
        ]
        for one in [*free, *constrained]:
            sampler.add(one)
        finish(sampler)
        return [one.ids for one in free]

    bound = [
        LiveSequence(
            (5, 6), Sampling(seed=n, max_tokens=60), constraint=constraints.create(validated_schema(PERSON))
        )
        for n in range(3)
    ]
    assert run(*bound) == run()


def test_scores_are_the_model_s_own(tiny):
    constraints = ConstraintFactory(tiny.tokenizer, tiny.model.config.vocab_size, tiny.end_ids)
    sampler = ContinuousSampler(tiny.model, tiny.end_ids, slots=1, capacity=200, kept=0)
    prompt = (5, 6, 7)
    constraint = constraints.create(validated_schema({"enum": ["the cat"]}))
    sampler.add(
        LiveSequence(prompt, Sampling(temperature=0, max_tokens=30), top_logprobs=1, constraint=constraint)
    )
    drawn = finish(sampler)
    ids = [one.id for one in drawn]
    with torch.inference_mode():
        logp_TV = tiny.model(torch.tensor([[*prompt, *ids]])).logits[0].log_softmax(-1)
    wanted = [logp_TV[len(prompt) - 1 + n, token].item() for n, token in enumerate(ids)]
    assert [one.logprob.logprob for one in drawn] == pytest.approx(wanted, abs=1e-3)
    assert any(
        one.logprob.top[0][0] != one.id for one in drawn
    )  # the model alone would have sampled other tokens


@pytest.mark.parametrize("text", ['{"a": 1}', '{"a":1}', '{\n  "a": 1\n}', '{"a": "naïve 東京 🙂"}', "{}"])
def test_what_satisfies_the_schema_is_allowed_to_its_end_with_the_tokenizer_s_own_tokens(smollm2, text):
    tokenizer, constraints = smollm2
    constraint = constraints.create(validated_schema({"type": "object"}))
    ids = tokenizer.encode(text, add_special_tokens=False)
    for position, token in enumerate(ids):
        allowed_V = constraint.allowed_tokens()
        assert allowed_V.shape == (WIDTH,) and allowed_V[token], position
        assert not allowed_V[[0, 2]].any()  # no end in mid-object
        constraint.consume(token)
    assert constraint.finished and constraint.failure is None


def test_an_answer_may_end_only_where_the_schema_lets_it(smollm2):
    tokenizer, constraints = smollm2
    constraint = constraints.create(validated_schema({"type": "integer"}))
    assert not constraint.allowed_tokens()[[0, 2]].any()
    constraint.consume(tokenizer.encode("7", add_special_tokens=False)[0])
    allowed_V = constraint.allowed_tokens()
    assert allowed_V[[0, 2]].all() and not constraint.finished  # 7 is complete, and can become 71
    allowed = {tokenizer.decode([token]) for token in np.flatnonzero(allowed_V) if token not in (0, 2)}
    assert all(re.fullmatch(r"[0-9]+", word) for word in allowed)


def test_whitespace_is_bounded(smollm2):
    tokenizer, constraints = smollm2
    constraint = constraints.create(validated_schema({"type": "object"}))
    for token in tokenizer.encode("{\n\n", add_special_tokens=False):
        constraint.consume(token)
    for _ in range(30):
        space = next(
            (t for t in np.flatnonzero(constraint.allowed_tokens()) if not tokenizer.decode([t]).strip()),
            None,
        )
        if space is None:
            return
        constraint.consume(int(space))
    raise AssertionError("an answer could be made of whitespace")


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "strin"}, "strin"),
        ({"$ref": "#/nope"}, "/nope"),
        ({"$ref": "#"}, "nothing satisfies it"),
        ({"allOf": [{"$ref": "#"}]}, "nothing satisfies it"),
        ({"properties": {f"key{n}": {} for n in range(5000)}}, "characters"),
        ({"type": "object", "properties": [1]}, "properties"),
        ({"type": "array", "uniqueItems": True}, "uniqueItems"),
        ({"type": "string", "pattern": "("}, "regex"),
        ({"type": "object", "required": ["z"], "additionalProperties": False}, "'z'"),
    ],
)
def test_a_schema_that_cannot_be_followed_says_why(schema, message):
    with pytest.raises(SchemaError, match=re.escape(message)):
        validated_schema(schema)


def test_a_failure_ends_that_answer_and_says_why_without_the_schema(smollm2):
    tokenizer, constraints = smollm2
    constraint = constraints.create(validated_schema({"enum": ["secret"]}))
    constraint.consume(tokenizer.encode("{", add_special_tokens=False)[0])
    assert constraint.finished and constraint.allowed_tokens().all()
    assert "could not be followed further" in str(constraint.failure)
    assert "secret" not in str(constraint.failure)


def test_a_model_without_an_end_token_ends_with_its_json():
    tokenizer, _ = load_tokenizer("embedded:smollm2")
    torch.manual_seed(0)
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=WIDTH, **sizes)).eval()
    sampler = ContinuousSampler(model, set(), slots=1, capacity=64, kept=0)
    constraint = ConstraintFactory(tokenizer, WIDTH, set()).create(
        validated_schema({"enum": [[1, 2], "left"]})
    )
    one = LiveSequence((1,), Sampling(seed=3, max_tokens=40), constraint=constraint)
    sampler.add(one)
    assert finish(sampler)[-1].finish_reason == "stop"
    assert json.loads(tokenizer.decode(one.ids)) in ([1, 2], "left")


@pytest.mark.parametrize(
    "uri",
    [
        "https://example.org", "http://example.org:8080/a/b?c=d/e#f", "mailto:a@example.org", "urn:isbn:12-3",
        "https://example.org/%C3%A9?q=1&r=(2)", "file:///etc",
        "no colon", "https://exa mple.org", ":x", "https://example.org/%zz", "https://é.org", "http://a:b",
    ],
)  # fmt: skip
def test_a_uri_is_one_by_rfc_3986(smollm2, uri):
    """What both copies of llguidance enforce for `format: uri`, against the standard library's parser."""
    tokenizer, constraints = smollm2
    constraint = constraints.create(validated_schema({"type": "string", "format": "uri"}))
    ids = tokenizer.encode(json.dumps(uri, ensure_ascii=False), add_special_tokens=False)
    followed = True
    for token in ids:
        if not constraint.allowed_tokens()[token]:
            followed = False
            break
        constraint.consume(token)
    expected = re.fullmatch(r"[a-z]+:\S+", uri) and uri.isascii() and "%zz" not in uri
    try:
        expected = expected and urlsplit(uri).port != 0
    except ValueError:
        expected = False
    assert followed == bool(expected)


REFERENCES = {
    "definition": ({"$ref": "#/$defs/e", "$defs": {"e": {"enum": ["a", "b"]}}}, '"b"', '"c"'),
    "property": (
        {
            "type": "object",
            "properties": {"a": {"type": "integer"}, "b": {"$ref": "#/properties/a"}},
            "required": ["b"],
            "additionalProperties": False,
        },
        '{"b":1}',
        '{"b":"1"}',
    ),
    "recursion": (
        {
            "type": "object",
            "properties": {"c": {"type": "array", "items": {"$ref": "#"}}},
            "additionalProperties": False,
        },
        '{"c":[{"c":[]},{}]}',
        '{"c":[1]}',
    ),
    "one of": ({"oneOf": [{"type": "integer"}, {"enum": ["z"]}]}, '"z"', '"y"'),
}


@pytest.mark.parametrize("name", REFERENCES)
def test_references_are_followed(smollm2, name):
    tokenizer, constraints = smollm2
    schema, good, bad = REFERENCES[name]
    for text, expected in ((good, True), (bad, False)):
        constraint = constraints.create(validated_schema(schema))
        followed = True
        for token in tokenizer.encode(text, add_special_tokens=False):
            followed = followed and bool(constraint.allowed_tokens()[token])
            if followed:
                constraint.consume(token)
        assert (followed and bool(constraint.allowed_tokens()[2])) == expected  # 2 ends the answer


def test_a_property_or_a_value_named_format_is_no_format():
    schema = {
        "type": "object",
        "properties": {"format": {"const": {"format": "uri"}}},
        "examples": [{"format": "uri"}],
    }
    prepared = validated_schema(schema)
    assert prepared["properties"] == schema["properties"] and prepared["examples"] == schema["examples"]
