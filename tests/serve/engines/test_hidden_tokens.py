"""Tokens that llama.cpp hides are found from the bytes of a text."""

import asyncio
import itertools

import pytest
from hypothesis import given, settings, strategies as st

from stillhouse.serve.engines.hidden_tokens import TokenTable, ends_inside_character, recover, spellings

PIECES = [b"a", b" ", *"é€😀".encode().hex(" ").split()]
PIECES = [piece if isinstance(piece, bytes) else bytes.fromhex(piece) for piece in PIECES]
PIECES = list(dict.fromkeys([*PIECES, b" \xf0\x9f", b"\xf0\x9f", b"\x9f\x98", b"\xe2\x82", "é".encode()]))


def table(pieces=PIECES):
    made = TokenTable.__new__(TokenTable)
    made.bytes_of = list(pieces)
    made.ids_of = {piece: [number] for number, piece in enumerate(pieces)}
    made.longest = max(map(len, pieces))
    return made


@given(st.binary(max_size=6))
def test_a_text_ends_inside_a_character_if_more_bytes_could_complete_it(text):
    """Against Python's incremental decoder, where the text before is valid."""
    try:
        text.decode()
        assert not ends_inside_character(text)
    except UnicodeDecodeError as error:
        if error.reason == "unexpected end of data":
            assert ends_inside_character(text)


@settings(max_examples=80, deadline=None)
@given(st.lists(st.integers(2, len(PIECES) - 1), min_size=1, max_size=3))
def test_spellings_are_those_of_an_exhaustive_search(ids):
    text = b"".join(PIECES[number] for number in ids)
    expected = []
    for candidate in itertools.product(range(len(PIECES)), repeat=len(ids)):
        ends = list(itertools.accumulate(PIECES[number] for number in candidate))
        if ends[-1] == text and all(map(ends_inside_character, ends)):
            expected.append(candidate)
    assert sorted(spellings(table(), b"", text, len(ids))) == sorted(expected)


def test_the_likelier_spelling_is_chosen_and_scored():
    """Two ways to write the first three bytes of an emoji; a model that prefers the second."""
    pieces = table()
    candidates = spellings(pieces, b"", b"\xf0\x9f\x98", 2)
    assert len(candidates) == 2
    likely = candidates[1]

    async def next_logprobs(ids, count):
        scores = dict.fromkeys(range(len(PIECES)), -9.0)
        scores |= {likely[0]: -0.5} if ids == (5,) else {likely[1]: -0.25} if ids[-1:] == likely[:1] else {}
        return sorted(scores.items(), key=lambda item: -item[1])[:count]

    tokens = asyncio.run(recover(candidates, (5,), 1, next_logprobs))
    assert [(token.id, token.logprob) for token in tokens] == [(likely[0], -0.5), (likely[1], -0.25)]
    assert tokens[0].top == ((likely[0], -0.5),)
    assert asyncio.run(recover([], (5,), 1, next_logprobs)) == []


@pytest.mark.parametrize(("text", "count"), [(b"ab", 1), (b"\xf0", 2), (b"a", 1)])
def test_a_text_that_no_hidden_tokens_spell_has_no_spelling(text, count):
    assert spellings(table(), b"", text, count) == []
