"""Tool calls in a streamed answer equal those of the whole answer, and no other text is lost."""

import json
import re

import pytest
from hypothesis import given, settings, strategies as st

from stillhouse.models.chat.tool_calls import ToolCallFormat
from stillhouse.serve.api.responses import ChatCompletionWriter
from stillhouse.serve.engines.base import TextDelta
from stillhouse.serve.generation.answers import GeneratedAnswer
from stillhouse.serve.generation.choices import ChoiceGenerations
from stillhouse.serve.generation.tool_parser import ParsedCall, ToolCallParser
from stillhouse.serve.metrics import TokenUsage

HERMES = ToolCallFormat("<tool_call>\n", "\n</tool_call>", "arguments")
BARE = ToolCallFormat("", "", "parameters")
NAMES = ("f", "grün")
FRAGMENTS = st.lists(
    st.sampled_from([
        "<tool_call>", "</tool_call>", "<tool", "_call>", "</tool_call", "\n", " ", "a", "é", "{", "}",
        '{"name": "f"}',
        '{"name": "f", "parameters": {}}',
        '{"name": "g", "arguments": {}}',
        '{"name": "f", "arguments": 3}',
        '{"name": "f", "arguments": {"x": NaN}}',
        '{"name": "grün", "arguments": {}}',
        '{"name": "f", "arguments": {"x": "</tool_call>"}}',
        '<tool_call>\n{"name": "f", "arguments": {"q": [{}, "\\"}"]}}\n</tool_call>',
    ]),
    max_size=12,
)  # fmt: skip


def read(form, chunks):
    """Text and calls, with neighbouring texts joined."""
    parser, parts = ToolCallParser(form, NAMES), []
    for chunk in chunks:
        parts += parser.add(chunk)
    parts += parser.add("", end=True)
    joined = []
    for part in parts:
        part = (part.name, json.loads(part.arguments)) if isinstance(part, ParsedCall) else part
        if isinstance(part, str) and joined and isinstance(joined[-1], str):
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def a_call(text, form):
    """The call that ``text`` spells, or None."""
    try:
        value = json.loads(text, parse_constant=lambda name: 1 / 0)
    except (ValueError, ZeroDivisionError):
        return None
    fits = isinstance(value, dict) and value.get("name") in NAMES
    arguments = value.get(form.arguments_key, {}) if fits else None
    return (value["name"], arguments) if isinstance(arguments, dict) else None


def expected(text):
    """A slow oracle: tries every closing mark of every opening mark, and keeps the text between calls."""
    parts, start_of_text, index = [], 0, 0
    while (index := text.find("<tool_call>", index)) >= 0:
        body, call_and_end = index + len("<tool_call>"), None
        ends = [match.span() for match in re.finditer(r"</tool_call>", text) if match.start() >= body]
        for length in range(len("</tool_call>")):  # the closing mark may be missing, or cut off
            if text.endswith("</tool_call>"[:length]):
                ends.append((len(text) - length, len(text)))
        for start, end in ends:
            if call := a_call(text[body:start], HERMES):
                call_and_end = (call, end)
                break
        if call_and_end:
            parts += [text[start_of_text:index], call_and_end[0]]
            start_of_text = index = call_and_end[1]
        else:
            index = body
    parts.append(text[start_of_text:])
    for position in range(0, len(parts), 2):
        if position > 0:
            parts[position] = parts[position].lstrip()
        if position < len(parts) - 1:
            parts[position] = parts[position].rstrip()
    return [part for part in parts if part]


def chunks(text, cuts):
    bounds = sorted({cut % (len(text) + 1) for cut in cuts})
    return [text[a:b] for a, b in zip([0, *bounds], [*bounds, len(text)], strict=True)]


@settings(deadline=None, max_examples=500)
@given(FRAGMENTS, st.lists(st.integers(0, 400)))
def test_calls_in_pieces_are_the_calls_of_the_whole(fragments, cuts):
    text = "".join(fragments)
    assert read(HERMES, chunks(text, cuts)) == expected(text)


@settings(deadline=None)
@given(FRAGMENTS, st.lists(st.integers(0, 400)))
def test_an_answer_that_is_a_call_as_a_whole(fragments, cuts):
    text = "".join(fragments)
    call = a_call(text, BARE) if text.lstrip().startswith("{") else None
    assert read(BARE, chunks(text, cuts)) == ([call] if call else [text] if text else [])


@pytest.mark.parametrize("form", [HERMES, BARE])
def test_every_cut_of_an_answer_with_a_call(form):
    call = json.dumps({"name": "f", form.arguments_key: {"text": "a } </tool_call> é"}}, ensure_ascii=False)
    text = f"Let me see.\n{form.prefix}{call}{form.suffix}" if form.prefix else call
    expected_parts = [*(["Let me see."] if form.prefix else []), ("f", {"text": "a } </tool_call> é"})]
    for cut in range(len(text) + 1):
        assert read(form, [text[:cut], text[cut:]]) == expected_parts
        alone = read(form, [text[:cut]])  # the answer was cut off here
        if not any(isinstance(part, tuple) for part in alone):
            assert "".join(alone) == text[:cut]
    assert read(form, list(text)) == expected_parts


def test_text_is_returned_as_soon_as_it_cannot_become_a_call():
    parser = ToolCallParser(HERMES, NAMES)
    assert parser.add("Hello <to") == ["Hello"]
    assert parser.add("ol> you") == [" <tool> you"]
    assert parser.add("<tool_call> no") == ["<tool_call>", " no"]


def writer_of(answer):
    writer = ChatCompletionWriter("m", include_usage=False, context=None)
    writer.begin(ChoiceGenerations("m", None, [None], [answer], TokenUsage(1)))
    return writer


def test_an_answer_with_reasoning_text_and_two_calls_in_the_api_s_form():
    text = (
        "Which?</think>\n\nLet me see.\n"
        '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "grün"}\n</tool_call>'
    )
    answer = GeneratedAnswer(0, starts_in_reasoning=True, tool_parser=ToolCallParser(HERMES, NAMES))
    writer = writer_of(answer)
    deltas = [*(TextDelta(character, tokens=1) for character in text), TextDelta(finish_reason="stop")]
    events = b"".join(writer.add(answer, delta) for delta in deltas).decode().split("\n\n")
    chunks_ = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events if event]
    assert [chunk["finish_reason"] for chunk in chunks_] == [None] * (len(chunks_) - 1) + ["tool_calls"]
    deltas = [chunk["delta"] for chunk in chunks_]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Which?"
    assert "".join(delta.get("content", "") for delta in deltas) == "Let me see."
    call_deltas = [item for delta in deltas for item in delta.get("tool_calls", ())]
    assert [item["index"] for item in call_deltas] == [0, 0, 1, 1]
    assert [item["function"].get("name") for item in call_deltas] == ["f", None, "grün", None]
    assert [item["function"]["arguments"] for item in call_deltas] == ["", '{"x": 1}', "", "{}"]
    message = json.loads(writer.whole())["choices"][0]["message"]
    assert message["content"] == "Let me see." and message["reasoning_content"] == "Which?"
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "f", "arguments": '{"x": 1}'},
        {"name": "grün", "arguments": "{}"},
    ]
    assert [call["id"] for call in message["tool_calls"]] == [item["id"] for item in call_deltas[::2]]


def test_an_answer_that_was_cut_off_after_a_call_says_so():
    answer = GeneratedAnswer(0, starts_in_reasoning=False, tool_parser=ToolCallParser(HERMES, NAMES))
    answer.add(
        TextDelta('<tool_call>\n{"name": "f"}\n</tool_call>\n<tool_call>\n{"na', finish_reason="length")
    )
    whole = json.loads(writer_of(answer).whole())["choices"][0]
    assert whole["finish_reason"] == "length" and len(whole["message"]["tool_calls"]) == 1
    assert whole["message"]["content"] == '<tool_call>\n{"na'


def test_half_a_character_is_no_argument():
    whole = '<tool_call>{"name": "f", "arguments": {"x": "\\ud83d\\ude42"}}</tool_call>'
    assert read(HERMES, [whole]) == [("f", {"x": "🙂"})]
    half = whole.replace("\\ude42", "")
    assert read(HERMES, [half]) == [half]


def test_deep_json_is_text():
    text = '<tool_call>{"name": "f", "arguments": ' + '{"a":' * 100_000 + "1" + "}" * 100_001 + "</tool_call>"
    assert read(HERMES, [text]) == [text]
