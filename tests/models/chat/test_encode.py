"""Segments in mid-text, with tokenizers that write a space before a text's first word."""

import pytest
from tokenizers import Tokenizer, models, normalizers
from transformers import PreTrainedTokenizerFast

from stillhouse.models.chat.encode import encode_segment


def sentencepiece_like(*, control_in_vocabulary, space_first):
    """Byte fallback as in Llama 2 (`\\x01` is a byte) or as in Gemma 3 (it is also an entry of its own)."""
    words = ["<unk>", "<s>", *[f"<0x{byte:02X}>" for byte in range(256)], "▁", "a", "b", "ab", "▁ab"]
    words += ["\x01"] if control_in_vocabulary else []
    vocabulary = {word: number for number, word in enumerate(words)}
    merges = [("a", "b"), ("▁", "ab")]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True))
    space = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space]) if space_first else space
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")
    return fast, vocabulary


@pytest.mark.parametrize("control_in_vocabulary", [False, True])
@pytest.mark.parametrize("space_first", [False, True])
def test_a_segment_in_mid_text_gets_no_space(control_in_vocabulary, space_first):
    tokenizer, ids = sentencepiece_like(control_in_vocabulary=control_in_vocabulary, space_first=space_first)
    start = "▁ab" if space_first else "ab"
    assert encode_segment(tokenizer, "ab", "", ["<s>"]) == [ids[start]]
    assert encode_segment(tokenizer, "ab", "x", ["<s>"]) == [ids["ab"]]
    assert encode_segment(tokenizer, " ab", "x", ["<s>"]) == [ids["▁ab"]]
    assert encode_segment(tokenizer, "a\x01b", "x", ["<s>"])[0] == ids["a"]
    assert encode_segment(tokenizer, "", "x", ["<s>"]) == []
