"""Tokenizers rebuilt from GGUF headers, against llama.cpp's own tokenization of the same file."""

from __future__ import annotations

import json
import unicodedata
import urllib.request

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from tiny_gguf import BYTE, BYTES, CONTROL, MERGES, NORMAL, UNUSED, USER_DEFINED, vocabulary, write_gguf
from transformers import AutoTokenizer

from stillhouse.errors import TokenizerMismatchError
from stillhouse.models import (
    describe,
    load_tokenizer,
    same_tokenizer,
    start_llama_server,
    tokenizer_difference,
)
from stillhouse.models.gguf.file import read_gguf
from stillhouse.models.gguf.tokenizer import check_tokenizer, tokenizer_from_gguf

R1 = {
    "<｜end▁of▁sentence｜>": CONTROL,
    "<｜User｜>": USER_DEFINED,
    "<｜Assistant｜>": USER_DEFINED,
    "<｜begin▁of▁sentence｜>": CONTROL,
    "<｜▁pad▁｜>": CONTROL,
    "<think>": USER_DEFINED,
    "</think>": USER_DEFINED,
}
TEXTS = [
    "Hi the 123, you're in théir 1234567 café.\n\n\n  Done!\t\r\n x",
    "don't DON'T I'll we've  HTTPServer CamelCase snake_case __init__(self): # 3.14e-10",
    "数学は12345です。 ひらがなカタカナ 한국어 математика naïve 🙂🙂 a\u0301",
    "   leading and trailing   ",
    "<|im_start|>user\nHi<|im_end|>\n",
    "!!!...???  ((([[[{{{ \n \n\n \n",
]


def r1_header(path, **changes):
    """A header like that of R1-Distill-Qwen: DeepSeek's special tokens in Qwen's vocabulary."""
    tokens, types = vocabulary(R1, padding=5)
    first = len(BYTES) + len(MERGES)
    special = {"bos": first + 3, "eos": first, "padding": first + 4}
    options = {"tokens": tokens, "types": types, "pre": "deepseek-r1-qwen", "special": special} | changes
    return write_gguf(path, **options), first


class Llama:
    """llama.cpp's tokenizer, through its loopback port."""

    def __init__(self, path):
        xllamacpp = pytest.importorskip("xllamacpp")
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.verbosity, params.warmup, params.ui = 64, -1, False, False
        self.server = start_llama_server(params)

    def ids(self, text):
        body = json.dumps({"content": text, "parse_special": True, "add_special": False}).encode()
        request = urllib.request.Request(
            f"{self.server.listening_address}/tokenize", body, {"content-type": "application/json"}
        )
        return json.load(urllib.request.urlopen(request))["tokens"]


def test_an_r1_distill_header_keeps_its_ids(tmp_path):
    path, first = r1_header(tmp_path / "r1.gguf")
    tokenizer, _ = load_tokenizer(str(path))
    for offset, token in enumerate(R1):
        assert tokenizer.encode(token, add_special_tokens=False) == [first + offset]
        assert tokenizer.convert_ids_to_tokens(first + offset) == token
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (
        first + 3,
        first,
        first + 4,
    )
    assert tokenizer.decode([first + 1, first + 5]) == "<｜User｜><think>"
    text = "<｜begin▁of▁sentence｜><｜User｜>Hi<｜Assistant｜><think>\nthe</think>you<｜end▁of▁sentence｜>"
    ids = tokenizer.encode(text, add_special_tokens=False)
    assert ids == Llama(path).ids(text)
    assert tokenizer.decode(ids) == text


def test_what_transformers_makes_of_that_header_is_caught(tmp_path):
    """The silent failure that our own conversion prevents. This test fails once transformers is fixed."""
    path, _ = r1_header(tmp_path / "r1.gguf")
    theirs = AutoTokenizer.from_pretrained(tmp_path, gguf_file=path.name)
    assert len(theirs.encode("<｜User｜>", add_special_tokens=False)) > 1
    with pytest.raises(TokenizerMismatchError):
        check_tokenizer(theirs, read_gguf(path))


@pytest.mark.parametrize(
    "pre", ["smollm", "gpt-2", "llama-bpe", "qwen2", "deepseek-v3", "gpt-4o", "tekken", "starcoder"]
)
def test_text_is_cut_as_llama_cpp_cuts_it(tmp_path, pre):
    tokens, types = vocabulary()
    path = write_gguf(
        tmp_path / "t.gguf", tokens=tokens, types=types, pre=pre, special={"eos": len(tokens) - 1}
    )
    tokenizer, llama = tokenizer_from_gguf(read_gguf(path)), Llama(path)
    for text in TEXTS:
        # Qwen's own tokenizer composes characters first; llama.cpp does not.
        same = unicodedata.normalize("NFC", text) if pre == "qwen2" else text
        assert tokenizer.encode(text, add_special_tokens=False) == llama.ids(same), text


def test_any_text_survives_and_agrees_with_llama_cpp(tmp_path):
    path, _ = r1_header(tmp_path / "r1.gguf")
    tokenizer, llama = tokenizer_from_gguf(read_gguf(path)), Llama(path)

    # Qwen's tokenizer applies NFC and llama.cpp does not, so the texts are in NFC already.
    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.text(st.characters(max_codepoint=0x24F, exclude_characters="\x00"), max_size=40))
    def agree(text):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert ids == llama.ids(text)
        assert tokenizer.decode(ids) == text

    agree()


def test_an_unknown_pre_tokenizer_is_refused(tmp_path):
    path, _ = r1_header(tmp_path / "t.gguf", pre="something-new")
    with pytest.raises(TokenizerMismatchError, match="something-new"):
        load_tokenizer(str(path))


def test_a_start_token_outside_the_vocabulary_is_refused(tmp_path):
    path, _ = r1_header(tmp_path / "t.gguf", special={"bos": 151646, "eos": 1})
    with pytest.raises(TokenizerMismatchError, match="151646"):
        load_tokenizer(str(path))


def test_a_token_with_two_ids_is_refused(tmp_path):
    tokens, types = vocabulary({"<|a|>": CONTROL, "the": NORMAL, "he": NORMAL})
    path = write_gguf(tmp_path / "t.gguf", tokens=tokens, types=types)
    with pytest.raises(TokenizerMismatchError, match="'he' has two ids"):
        load_tokenizer(str(path))


def test_a_merge_of_unknown_tokens_is_refused(tmp_path):
    tokens, types = vocabulary()
    path = write_gguf(tmp_path / "t.gguf", tokens=tokens, types=types, merges=[*MERGES, "z z"])
    with pytest.raises(TokenizerMismatchError, match="z z"):
        load_tokenizer(str(path))


def test_a_marker_declared_as_normal_text_is_still_one_token(tmp_path):
    """Older converters declare DeepSeek's markers normal tokens, which no merge can produce."""
    tokens, types = vocabulary(R1 | {"<｜User｜>": NORMAL})
    path = write_gguf(tmp_path / "t.gguf", tokens=tokens, types=types, pre="qwen2")
    tokenizer, _ = load_tokenizer(str(path))
    assert tokenizer.encode("<｜User｜>") == [tokens.index("<｜User｜>")]


def test_padding_rows_do_not_make_another_tokenizer(tmp_path):
    small = write_gguf(tmp_path / "a.gguf", **dict(zip(("tokens", "types"), vocabulary(), strict=True)))
    large = write_gguf(
        tmp_path / "b.gguf", **dict(zip(("tokens", "types"), vocabulary(padding=64), strict=True))
    )
    a, b = load_tokenizer(str(small))[0], load_tokenizer(str(large))[0]
    assert same_tokenizer(a, b)
    assert describe(str(small)).vocab_size != describe(str(large)).vocab_size
    assert describe(str(small)).tokenizer_hash == describe(str(large)).tokenizer_hash


def test_differences_are_named(tmp_path):
    def write(name, **options):
        tokens, types = vocabulary(options.pop("added", None))
        return load_tokenizer(str(write_gguf(tmp_path / name, tokens=tokens, types=types, **options)))[0]

    plain = write("plain.gguf")
    assert tokenizer_difference(plain, plain) is None
    more = write("more.gguf", added={"<|im_start|>": CONTROL, "<|im_end|>": CONTROL, "<think>": USER_DEFINED})
    assert "<think>" in str(tokenizer_difference(plain, more))
    swapped = write("swapped.gguf", added={"<|im_end|>": CONTROL, "<|im_start|>": CONTROL})
    assert "<|im_" in str(tokenizer_difference(plain, swapped))
    assert "merges" in str(tokenizer_difference(plain, write("merges.gguf", merges=MERGES[::-1])))
    assert "split the text" in str(tokenizer_difference(plain, write("pre.gguf", pre="llama-bpe")))


SPM_WORDS = [
    "▁",
    "▁t",
    "▁th",
    "▁the",
    "he",
    "the",
    "H",
    "i",
    "Hi",
    "▁Hi",
    "t",
    "h",
    "e",
    "a",
    "b",
    "ab",
    "▁a",
    "▁▁",
    "c",
]


@pytest.mark.parametrize("prefix", [True, False])
def test_a_sentencepiece_header_agrees_with_llama_cpp(tmp_path, prefix):
    tokens = ["<unk>", "<s>", "</s>", "<start_of_turn>", *(f"<0x{n:02X}>" for n in range(256)), *SPM_WORDS]
    types = [2, CONTROL, CONTROL, USER_DEFINED, *[BYTE] * 256, *[NORMAL] * len(SPM_WORDS)]
    scores = [0.0] * 260 + [-float(n) for n in range(len(SPM_WORDS))]
    path = tmp_path / "spm.gguf"
    write_spm(path, tokens, types, scores, prefix)
    tokenizer, llama = tokenizer_from_gguf(read_gguf(path)), Llama(path)
    for text in ["the Hi", "Hi  the ab", "é abab\n", "a<start_of_turn>the the", " the", "<start_of_turn>Hi"]:
        assert tokenizer.encode(text, add_special_tokens=False) == llama.ids(text), text
    assert tokenizer.decode(tokenizer.encode("é  the\n", add_special_tokens=False)) == "é  the\n"
    assert tokenizer.encode("Hi")[0] == tokenizer.bos_token_id


def write_spm(path, tokens, types, scores, prefix):
    import gguf
    from tiny_gguf import _zeros

    writer = gguf.GGUFWriter(str(path), "llama")
    _zeros(writer, "llama", len(tokens))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_scores(scores)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_space_prefix(prefix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def test_unused_tokens_with_names_keep_their_ids(tmp_path):
    tokens, types = vocabulary({"<|im_end|>": CONTROL, "<unused0>": UNUSED})
    path = write_gguf(tmp_path / "t.gguf", tokens=tokens, types=types, special={"eos": len(tokens) - 2})
    tokenizer, _ = load_tokenizer(str(path))
    assert tokenizer.convert_tokens_to_ids("<unused0>") == len(tokens) - 1
