"""Calls in a streamed answer are those of the whole answer, and what is no call is never lost."""

import json
import re

import pytest
from hypothesis import given, settings, strategies as st

from stillhouse.models.chat.tool_calls import ToolCallFormat
from stillhouse.serve.api.responses import ChatChoice
from stillhouse.serve.engines.base import TextDelta
from stillhouse.serve.tool_parser import ParsedCall, ToolCallParser

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
    """Text and calls, neighbouring texts joined."""
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
    """The call that ``text`` is, or None."""
    try:
        found = json.loads(text, parse_constant=lambda name: 1 / 0)
    except (ValueError, ZeroDivisionError):
        return None
    fits = isinstance(found, dict) and found.get("name") in NAMES
    arguments = found.get(form.arguments_key, {}) if fits else None
    return (found["name"], arguments) if isinstance(arguments, dict) else None


def expected(text):
    """The slow way: every end of every mark is tried, and the text between calls is kept."""
    parts, begun, at = [], 0, 0
    while (at := text.find("<tool_call>", at)) >= 0:
        body, found = at + len("<tool_call>"), None
        ends = [match.span() for match in re.finditer(r"</tool_call>", text) if match.start() >= body]
        for n in range(len("</tool_call>")):  # the closing mark may be missing, or cut off
            if text.endswith("</tool_call>"[:n]):
                ends.append((len(text) - n, len(text)))
        for start, end in ends:
            if call := a_call(text[body:start], HERMES):
                found = (call, end)
                break
        if found:
            parts += [text[begun:at], found[0]]
            begun = at = found[1]
        else:
            at = body
    parts.append(text[begun:])
    for place in range(0, len(parts), 2):
        if place > 0:
            parts[place] = parts[place].lstrip()
        if place < len(parts) - 1:
            parts[place] = parts[place].rstrip()
    return [part for part in parts if part]


def chunks(text, cuts):
    places = sorted({cut % (len(text) + 1) for cut in cuts})
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


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
    wanted = [*(["Let me see."] if form.prefix else []), ("f", {"text": "a } </tool_call> é"})]
    for cut in range(len(text) + 1):
        assert read(form, [text[:cut], text[cut:]]) == wanted
        alone = read(form, [text[:cut]])  # the answer was cut off here
        if not any(isinstance(part, tuple) for part in alone):
            assert "".join(alone) == text[:cut]
    assert read(form, list(text)) == wanted


def test_text_is_told_as_soon_as_it_cannot_become_a_call():
    parser = ToolCallParser(HERMES, NAMES)
    assert parser.add("Hello <to") == ["Hello"]
    assert parser.add("ol> you") == [" <tool> you"]
    assert parser.add("<tool_call> no") == ["<tool_call>", " no"]


def test_an_answer_of_thoughts_text_and_two_calls_in_the_api_s_words():
    text = (
        "Which?</think>\n\nLet me see.\n"
        '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>\n'
        '<tool_call>\n{"name": "grün"}\n</tool_call>'
    )
    choice = ChatChoice(
        0, starts_in_reasoning=True, logprob_formatter=None, tool_parser=ToolCallParser(HERMES, NAMES)
    )
    chunks_ = [chunk for letter in text for chunk in choice.add(TextDelta(letter, tokens=1))]
    chunks_ += choice.add(TextDelta(finish_reason="stop"))
    assert [chunk["finish_reason"] for chunk in chunks_] == [None] * (len(chunks_) - 1) + ["tool_calls"]
    deltas = [chunk["delta"] for chunk in chunks_]
    assert "".join(delta.get("reasoning_content", "") for delta in deltas) == "Which?"
    assert "".join(delta.get("content", "") for delta in deltas) == "Let me see."
    told = [item for delta in deltas for item in delta.get("tool_calls", ())]
    assert [item["index"] for item in told] == [0, 0, 1, 1]
    assert [item["function"].get("name") for item in told] == ["f", None, "grün", None]
    assert [item["function"]["arguments"] for item in told] == ["", '{"x": 1}', "", "{}"]
    message = choice.whole()["message"]
    assert message["content"] == "Let me see." and message["reasoning_content"] == "Which?"
    assert [call["function"] for call in message["tool_calls"]] == [
        {"name": "f", "arguments": '{"x": 1}'},
        {"name": "grün", "arguments": "{}"},
    ]
    assert [call["id"] for call in message["tool_calls"]] == [item["id"] for item in told[::2]]


def test_an_answer_that_was_cut_off_after_a_call_says_so():
    choice = ChatChoice(
        0, starts_in_reasoning=False, logprob_formatter=None, tool_parser=ToolCallParser(HERMES, NAMES)
    )
    choice.add(
        TextDelta('<tool_call>\n{"name": "f"}\n</tool_call>\n<tool_call>\n{"na', finish_reason="length")
    )
    whole = choice.whole()
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
