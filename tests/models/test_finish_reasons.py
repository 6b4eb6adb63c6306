"""The classes of finish reasons, by the words of the providers' own documentation."""

from __future__ import annotations

import pytest

from stillhouse.models.finish_reasons import finish_class, normalised

WORDS = {
    "stop": ["stop", "STOP", "eos", "eos_token", "end_turn", "stop_sequence"],
    "length": [
        "length",
        "MAX_TOKENS",
        "max_tokens",
        "max_output_tokens",
        "model_length",
        "FINISH_REASON_MAX_TOKENS",
    ],
    "content_filter": [
        "content_filter",
        "SAFETY",
        "RECITATION",
        "PROHIBITED_CONTENT",
        "sensitive",
        "refusal",
    ],
    "tool_calls": ["tool_calls", "function_call", "tool_use"],
    "error": ["error", "network_error", "insufficient_system_resource", "abort", "MALFORMED_FUNCTION_CALL"],
    "unknown": [None, "", "unknown", "OTHER", "banana"],
}
CASES = [(word, name) for name, words in WORDS.items() for word in words]


@pytest.mark.parametrize(("word", "name"), CASES)
def test_words_have_classes(word, name):
    assert finish_class(word) == name


def test_a_word_that_the_table_lacks_stays_as_it_is():
    assert [normalised(word) for word in ("banana", "MAX_TOKENS", None)] == ["banana", "length", "unknown"]
