"""Streamed text is the text: whatever the cuts, the parts join to what the whole gives."""

import pytest
from hypothesis import given, settings, strategies as st

from stillhouse.models import cut_at_stop, load_tokenizer, split_reasoning
from stillhouse.models.chat.reasoning import ReasoningStream
from stillhouse.serve.detokenizer import Detokenizer, StopFilter

FRAGMENTS = st.lists(
    st.sampled_from(["<think>", "</think>", "<th", "ink>", "</", "a", " ", "\n", "é", "\n\n"])
)


def chunks(text, cuts):
    places = sorted({cut % (len(text) + 1) for cut in cuts})
    return [text[a:b] for a, b in zip([0, *places], [*places, len(text)], strict=True)]


@settings(deadline=None)
@given(FRAGMENTS, st.lists(st.integers(0, 200)), st.booleans())
def test_thoughts_in_pieces_are_the_thoughts_of_the_whole(fragments, cuts, inside):
    text = "".join(fragments)
    splitter, parts = ReasoningStream(inside=inside), []
    for chunk in chunks(text, cuts):
        parts += splitter.add(chunk)
    parts += splitter.add("", end=True)
    said = {kind: "".join(t for k, t in parts if k == kind) for kind in ("content", "reasoning")}
    answer, thoughts = split_reasoning(text, inside=inside)
    assert (said["content"], said["reasoning"] or None) == (answer, thoughts)


@settings(deadline=None)
@given(
    st.text(alphabet="abST\n", max_size=40),
    st.lists(st.integers(0, 200)),
    st.lists(st.sampled_from(["ST", "Sa", "aab", "\n\n", "TTT"]), max_size=3),
)
def test_nothing_of_a_stop_is_shown(text, cuts, stops):
    holder, said = StopFilter(stops), ""
    for chunk in chunks(text, cuts):
        said += holder.add(chunk)
    said += holder.end()
    assert (said, holder.stopped) == cut_at_stop(text, stops)


@pytest.mark.parametrize(
    "text", ["Hello, world.", "naïve café 東京 👩‍🚀🏽 नमस्ते", "\t x  \n\n y", "🙂" * 5, ""]
)
def test_tokens_one_by_one_give_the_whole_text(text):
    tokenizer, _ = load_tokenizer("embedded:smollm2")
    ids = tokenizer.encode(text, add_special_tokens=False)
    one_by_one = Detokenizer(tokenizer)
    pieces = [one_by_one.add(token) for token in ids] + [one_by_one.end()]
    assert "".join(pieces) == tokenizer.decode(ids)
    assert all("\ufffd" not in piece for piece in pieces)


def test_special_tokens_are_told_only_where_they_are_wanted():
    tokenizer, _ = load_tokenizer("embedded:smollm2")
    ids = tokenizer.encode("<|im_start|>a<|im_end|> b", add_special_tokens=False)
    for shown, wanted in [((), "a b"), (("<|im_end|>",), "a<|im_end|> b")]:
        one_by_one = Detokenizer(tokenizer, shown=shown)
        assert "".join([*map(one_by_one.add, ids), one_by_one.end()]) == wanted


def test_a_character_that_is_cut_off_is_told_at_the_end():
    tokenizer, _ = load_tokenizer("embedded:smollm2")
    ids = tokenizer.encode("👩", add_special_tokens=False)
    assert len(ids) > 1
    cut = Detokenizer(tokenizer)
    pieces = [cut.add(token) for token in ids[:-1]]
    assert pieces == [""] * len(pieces)
    assert cut.end() == tokenizer.decode(ids[:-1])
