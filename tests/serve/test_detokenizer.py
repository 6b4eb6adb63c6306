"""Streamed text equals the whole text, wherever it is cut."""

import pytest
from hypothesis import given, settings, strategies as st

from stillhouse.models import cut_at_stop, load_tokenizer, split_reasoning
from stillhouse.models.chat.reasoning import ReasoningStream
from stillhouse.serve.engines.detokenizer import Detokenizer, StopFilter

FRAGMENTS = st.lists(
    st.sampled_from(["<think>", "</think>", "<th", "ink>", "</", "a", " ", "\n", "é", "\n\n"])
)


def chunks(text, cuts):
    bounds = sorted({cut % (len(text) + 1) for cut in cuts})
    return [text[a:b] for a, b in zip([0, *bounds], [*bounds, len(text)], strict=True)]


@settings(deadline=None)
@given(FRAGMENTS, st.lists(st.integers(0, 200)), st.booleans())
def test_reasoning_in_pieces_is_the_reasoning_of_the_whole(fragments, cuts, inside):
    text = "".join(fragments)
    splitter, parts = ReasoningStream(inside=inside), []
    for chunk in chunks(text, cuts):
        parts += splitter.add(chunk)
    parts += splitter.add("", end=True)
    texts = {kind: "".join(t for k, t in parts if k == kind) for kind in ("content", "reasoning")}
    answer, reasoning = split_reasoning(text, inside=inside)
    assert (texts["content"], texts["reasoning"] or None) == (answer, reasoning)


@settings(deadline=None)
@given(
    st.text(alphabet="abST\n", max_size=40),
    st.lists(st.integers(0, 200)),
    st.lists(st.sampled_from(["ST", "Sa", "aab", "\n\n", "TTT"]), max_size=3),
)
def test_nothing_of_a_stop_is_shown(text, cuts, stops):
    stop_filter, shown = StopFilter(stops), ""
    for chunk in chunks(text, cuts):
        shown += stop_filter.add(chunk)
    shown += stop_filter.end()
    assert (shown, stop_filter.stopped is not None) == cut_at_stop(text, stops)
    assert text.startswith(shown + (stop_filter.stopped or ""))


@pytest.mark.parametrize(
    "text", ["Hello, world.", "naïve café 東京 👩‍🚀🏽 नमस्ते", "\t x  \n\n y", "🙂" * 5, ""]
)
def test_tokens_one_by_one_give_the_whole_text(text):
    tokenizer, _ = load_tokenizer("embedded:smollm2")
    ids = tokenizer.encode(text, add_special_tokens=False)
    detokenizer = Detokenizer(tokenizer)
    texts = [detokenizer.add(token) for token in ids] + [detokenizer.end()]
    assert "".join(texts) == tokenizer.decode(ids)
    assert all("\ufffd" not in part for part in texts)


def test_special_tokens_are_shown_only_on_request():
    tokenizer, _ = load_tokenizer("embedded:smollm2")
    ids = tokenizer.encode("<|im_start|>a<|im_end|> b", add_special_tokens=False)
    for shown, expected in [((), "a b"), (("<|im_end|>",), "a<|im_end|> b")]:
        detokenizer = Detokenizer(tokenizer, shown=shown)
        assert "".join([*map(detokenizer.add, ids), detokenizer.end()]) == expected


def test_a_character_that_is_cut_off_is_shown_at_the_end():
    tokenizer, _ = load_tokenizer("embedded:smollm2")
    ids = tokenizer.encode("👩", add_special_tokens=False)
    assert len(ids) > 1
    detokenizer = Detokenizer(tokenizer)
    texts = [detokenizer.add(token) for token in ids[:-1]]
    assert texts == [""] * len(texts)
    assert detokenizer.end() == tokenizer.decode(ids[:-1])
