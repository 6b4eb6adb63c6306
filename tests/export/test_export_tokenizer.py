"""The vocabulary of an exported file: every id, and llama.cpp's tokens of texts.

STILLHOUSE_TOKENIZERS names directories with real tokenizers (see tests/distill/data/test_real_tokenizers.py).
"""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pytest
from exported_models import LlamaCpp, byte_level, gemma, save, sentencepiece
from hypothesis import HealthCheck, given, settings, strategies as st
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from stillhouse.errors import ModelError, TokenizerMismatchError
from stillhouse.export import check_gguf, export_gguf
from stillhouse.export.check_gguf import SAMPLES
from stillhouse.models import load_tokenizer, pre_tokenizer_name
from stillhouse.models.gguf.file import read_gguf
from stillhouse.models.gguf.pretokenizers import _ALIASES, KNOWN, pre_tokenizer

GIVEN = [Path(name) for name in os.environ.get("STILLHOUSE_TOKENIZERS", "").split(":") if name]
OWN_NAMES = [name for name in KNOWN if name not in _ALIASES]


def exported(tmp_path, tokenizer, architecture="llama"):
    save(tmp_path / "model", architecture, tokenizer)
    (export,) = export_gguf(tmp_path / "model", ["f32"])
    return export.path


@pytest.mark.parametrize("pre", OWN_NAMES)
def test_byte_level_text_is_cut_as_before(tmp_path, pre):
    tokenizer = byte_level(pre)
    path = exported(tmp_path, tokenizer)
    assert read_gguf(path).metadata["tokenizer.ggml.pre"] == pre
    llama = LlamaCpp(path)
    for text in [*SAMPLES, "<|im_start|>user\nHi<think><|im_end|>"]:
        assert llama.ids(text) == tokenizer.encode(text, add_special_tokens=False), text


@pytest.mark.parametrize("prefix", [True, False])
def test_sentencepiece_text_is_cut_as_before(tmp_path, prefix):
    tokenizer = sentencepiece(prefix=prefix)
    path = exported(tmp_path, tokenizer)
    llama = LlamaCpp(path)
    header = read_gguf(path).metadata
    assert (header["tokenizer.ggml.model"], header["tokenizer.ggml.add_space_prefix"]) == ("llama", prefix)
    for text in [*SAMPLES, " the the  answers and every some  small"]:
        assert llama.ids(text) == tokenizer.encode(text, add_special_tokens=False), text
    assert llama.ids("the still", add_special=True) == tokenizer.encode("the still")
    assert header["tokenizer.ggml.add_bos_token"] is True


@pytest.mark.parametrize("architecture", ["gemma2", "gemma3"])
def test_added_tokens_need_no_scores(tmp_path, architecture):
    """Google's tokenizers match runs of newlines and tags first; their merges of these are no order."""
    tokenizer = gemma(tab=architecture == "gemma2")
    path = exported(tmp_path, tokenizer, architecture)
    llama, again = LlamaCpp(path), load_tokenizer(str(path))[0]
    runs = "".join(f"the{' ' * n}still{chr(10) * n}" for n in range(1, 14))
    for text in [*SAMPLES, runs, "\t\ta <table>b</table> <tab the", "the answers  <table>\n\n\n  \n"]:
        expected = tokenizer.encode(text, add_special_tokens=False)
        assert llama.ids(text) == expected, text
        assert again.encode(text, add_special_tokens=False) == expected, text


def test_a_llama_tokenizer_follows_its_own_file(tmp_path):
    """transformers 5 puts no space before a text that begins with one; the file's rules do."""
    tokenizer = sentencepiece()
    save(tmp_path / "model", "llama", tokenizer)
    settings = tmp_path / "model/tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"tokenizer_class": "LlamaTokenizer"}))
    replaced = AutoTokenizer.from_pretrained(tmp_path / "model").encode("   the", add_special_tokens=False)
    expected = tokenizer.encode("   the", add_special_tokens=False)
    assert replaced != expected
    assert load_tokenizer(str(tmp_path / "model"))[0].encode("   the", add_special_tokens=False) == expected
    (export,) = export_gguf(tmp_path / "model", ["f32"])
    assert LlamaCpp(export.path).ids("   the") == expected


def test_tokens_that_swallow_white_space_still_do_so_when_read_back(tmp_path):
    """Phi's special tokens do. llama.cpp cannot, and the user is told."""
    tokenizer = byte_level()
    tokens = [
        AddedToken("<|user|>", special=True, rstrip=True),
        AddedToken("<|sep|>", special=True, lstrip=True),
    ]
    tokenizer.add_tokens(tokens)
    save(tmp_path / "model", "phi3", tokenizer)
    (export,) = export_gguf(tmp_path / "model", ["f32"])
    assert export.stripping == ["<|user|>", "<|sep|>"]
    again, llama = load_tokenizer(str(export.path))[0], LlamaCpp(export.path)
    for text in ["<|user|>\n  the <|sep|> small", "the<|user|>answers<|sep|>small"]:
        expected = tokenizer.encode(text, add_special_tokens=False)
        assert again.encode(text, add_special_tokens=False) == expected
        assert (llama.ids(text) == expected) == (" " not in text)


def test_named_templates_are_kept(tmp_path):
    tokenizer = byte_level()
    with_tools = "{{ tools }}" + tokenizer.chat_template
    tokenizer.chat_template = {"default": tokenizer.chat_template, "tool_use": with_tools}
    header = read_gguf(exported(tmp_path, tokenizer)).metadata
    assert header["tokenizer.chat_template"] == tokenizer.chat_template["default"]
    assert header["tokenizer.chat_template.tool_use"] == with_tools
    assert header["tokenizer.chat_templates"] == ["tool_use"]


@pytest.mark.parametrize("kind", ["bytes", "pieces"])
def test_any_text_is_cut_as_before(tmp_path, kind):
    tokenizer = byte_level("llama-bpe") if kind == "bytes" else sentencepiece()
    llama = LlamaCpp(exported(tmp_path, tokenizer))
    letters = st.text(st.characters(max_codepoint=0x24F, exclude_characters="\x00"), max_size=40)
    words = st.lists(st.sampled_from(["the", " answer", "  ", "\n", "12", "ques", "tion", "é"]), max_size=12)

    @settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.one_of(letters, words.map("".join)))
    def agree(text):
        assert llama.ids(text) == tokenizer.encode(text, add_special_tokens=False)

    agree()


def test_types_special_ids_and_rows_beyond_the_tokenizer(tmp_path):
    tokenizer = byte_level()
    header = read_gguf(exported(tmp_path, tokenizer)).metadata
    tokens, types = header["tokenizer.ggml.tokens"], header["tokenizer.ggml.token_type"]
    ids = tokenizer.get_vocab()
    assert [tokens[number] for number in ids.values()] == list(ids)
    assert tokens[len(ids) :] == [f"[PAD{n}]" for n in range(len(ids), len(tokens))] != []
    assert types[len(ids) :] == [5] * (len(tokens) - len(ids))
    assert (types[ids["<|im_start|>"]], types[ids["<think>"]], types[ids["a"]]) == (3, 4, 1)
    assert header["tokenizer.ggml.bos_token_id"] == ids["<|im_start|>"]
    assert header["tokenizer.ggml.eos_token_id"] == ids["<|im_end|>"]
    assert header["tokenizer.ggml.padding_token_id"] == ids["<|endoftext|>"]
    assert header["tokenizer.ggml.add_bos_token"] is False
    assert header["tokenizer.chat_template"] == tokenizer.chat_template


def test_an_end_of_turn_that_is_not_the_end_token_is_written(tmp_path):
    tokenizer = byte_level()
    tokenizer.eos_token = "<|endoftext|>"
    header = read_gguf(exported(tmp_path, tokenizer)).metadata
    assert header["tokenizer.ggml.eot_token_id"] == tokenizer.convert_tokens_to_ids("<|im_end|>")


@pytest.mark.parametrize("pre", OWN_NAMES)
def test_a_way_of_cutting_is_recognised_by_what_it_does(pre):
    cut, _, options = pre_tokenizer(pre)
    backend = Tokenizer(models.BPE(**options))
    backend.pre_tokenizer = pre_tokenizers.Sequence([cut])
    assert pre_tokenizer_name(backend) == pre


def test_a_model_that_never_ends_is_refused(tmp_path):
    tokenizer = byte_level()
    tokenizer.eos_token, tokenizer.chat_template = None, None
    save(tmp_path / "model", "llama", tokenizer)
    with pytest.raises(ModelError, match="end token"):
        export_gguf(tmp_path / "model", ["f32"])


def unknown_cut(tokenizer):
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )


def lower_case(tokenizer):
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()


@pytest.mark.parametrize(("change", "words"), [(unknown_cut, "splits text"), (lower_case, "Lowercase")])
def test_text_handling_that_llama_cpp_has_no_name_for_is_refused(tmp_path, change, words):
    tokenizer = byte_level()
    change(tokenizer)
    with pytest.raises(ModelError, match=words):
        exported(tmp_path, tokenizer)


def test_merges_that_scores_cannot_say_are_refused(tmp_path):
    """A BPE model with byte fallback that was trained as such lacks pairs that SentencePiece joins."""
    tokens = ["<unk>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), "a", "b", "ab", "ba", "aba"]
    vocab = {token: number for number, token in enumerate(tokens)}
    model = models.BPE(
        vocab, [("a", "b"), ("b", "a"), ("a", "ba")], unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), eos_token="</s>", unk_token="<unk>")
    with pytest.raises(ModelError, match="'ab', 'a'"):
        exported(tmp_path, fast)


def test_unigram_tokenizers_are_refused_by_name(tmp_path):
    backend = Tokenizer(models.Unigram([("<unk>", 0.0), ("</s>", 0.0), ("a", -1.0)], 0, False))
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", unk_token="<unk>")
    with pytest.raises(ModelError, match="Unigram"):
        exported(tmp_path, fast)


def test_added_tokens_beyond_the_embedding_are_left_out(tmp_path):
    """Gemma 3's text models share a tokenizer with the models that read images, which has one token more."""
    tokenizer = byte_level()
    save(tmp_path / "model", "llama", tokenizer)
    rows = json.loads((tmp_path / "model" / "config.json").read_text())["vocab_size"]
    tokenizer.add_tokens([AddedToken(f"<{n}>", special=True) for n in range(9)])
    tokenizer.save_pretrained(tmp_path / "model")
    beyond = {token for token, number in tokenizer.get_vocab().items() if number >= rows}
    assert beyond
    (written,) = export_gguf(tmp_path / "model", ["f32"])
    tokens = read_gguf(written.path).metadata["tokenizer.ggml.tokens"]
    assert len(tokens) == rows and beyond.isdisjoint(tokens)


def test_a_vocabulary_larger_than_the_embedding_is_refused(tmp_path):
    save(tmp_path / "model", "llama", byte_level())
    file = tmp_path / "model" / "tokenizer.json"
    data = json.loads(file.read_text())
    data["model"]["vocab"]["beyond"] = 100_000
    file.write_text(json.dumps(data))
    with pytest.raises(ModelError, match="beyond"):
        export_gguf(tmp_path / "model", ["f32"])


@pytest.mark.parametrize("by_llama_cpp", [True, False], ids=["llama.cpp", "read back"])
def test_a_file_that_tokenizes_text_differently_is_not_kept(tmp_path, monkeypatch, by_llama_cpp):
    """With a wrong pre-tokenizer name the file would load everywhere and answer a little worse."""
    save(tmp_path / "model", "llama", byte_level("llama-bpe"))
    monkeypatch.setattr("stillhouse.export.tokenizer.pre_tokenizer_name", lambda backend: "smollm")
    if by_llama_cpp:
        monkeypatch.setattr(check_gguf, "tokenizer_difference", lambda a, b, rows: None)
        monkeypatch.setattr(
            check_gguf, "tokenizer_from_gguf", lambda file: load_tokenizer(str(tmp_path / "model"))[0]
        )
    with pytest.raises(
        TokenizerMismatchError, match=r"in llama\.cpp" if by_llama_cpp else "not carried over"
    ):
        export_gguf(tmp_path / "model", ["f32"])
    assert list((tmp_path / "model" / "gguf").iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("directory", GIVEN, ids=str)
def test_real_tokenizers_give_the_same_ids(tmp_path, directory):
    tokenizer, _ = load_tokenizer(str(directory))
    save(tmp_path / "model", "llama", tokenizer, num_hidden_layers=1)
    (export,) = export_gguf(tmp_path / "model", ["q4_0"])
    llama = LlamaCpp(export.path)
    files = sorted(Path(__file__).parents[2].glob("src/stillhouse/r*/*.py"))
    for text in [*SAMPLES, *(file.read_text("utf-8") for file in files)]:
        same = unicodedata.normalize("NFC", text)
        assert llama.ids(same) == tokenizer.encode(same, add_special_tokens=False)
