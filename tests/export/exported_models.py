"""Tiny students of every architecture with tokenizers of both kinds, and llama.cpp as an oracle."""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import CHATML, WORDS
from tiny_gguf import tiny_model
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from stillhouse.models import start_llama_server
from stillhouse.models.gguf.pretokenizers import pre_tokenizer

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEXT = " ".join(WORDS) + " 12 1234 don't naïve café x**2 \n\n\t  "


def byte_level(pre: str = "gpt-2") -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with GGUF's pre-tokenizer ``pre``, a special and a plain added token."""
    cut, normalizer, options = pre_tokenizer(pre)
    tokenizer = Tokenizer(models.BPE(**options))
    tokenizer.pre_tokenizer, tokenizer.decoder = cut, decoders.ByteLevel()
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    trainer = trainers.BpeTrainer(
        vocab_size=330,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] * 4, trainer)
    tokenizer.add_tokens([AddedToken("<think>", special=False, normalized=False)])
    return _fast(tokenizer, bos="<|im_start|>", eos="<|im_end|>", pad="<|endoftext|>")


def sentencepiece(*, prefix: bool = True) -> PreTrainedTokenizerFast:
    """A SentencePiece BPE model as transformers converts it: every pair that forms a token, best first."""
    words = sorted({f"▁{word}" for word in [*WORDS, "12", "don't"]}, key=lambda word: (len(word), word))
    pieces = dict.fromkeys(
        word[:end] for end in range(2, max(map(len, words)) + 1) for word in words if end <= len(word)
    )
    pieces |= dict.fromkeys(["▁▁", "▁▁▁▁"])
    letters = sorted({letter for piece in pieces for letter in piece} | set("AZaz.,!"))
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{n:02X}>" for n in range(256)), *pieces, *letters]
    vocab = {token: number for number, token in enumerate(tokens)}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in pieces
        for cut in range(1, len(piece))
        if piece[:cut] in vocab and piece[cut:] in vocab
    ]
    model = models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    spaces = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    if not prefix:  # as Gemma's: no space is left to split at
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "<start_of_turn>", "<end_of_turn>"])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return _fast(tokenizer, bos="<s>", eos="</s>", pad="</s>", unk="<unk>")


def gemma(*, tab: bool = True) -> PreTrainedTokenizerFast:
    """As Google's own tokenizers: runs of blanks and tags are added tokens, and also joined by merges.

    Args:
        tab: whether the tab has a token of its own instead of one for its byte (Gemma 2).
    """
    state = json.loads(sentencepiece(prefix=False).backend_tokenizer.to_str())
    vocab = {token: None for token in state["model"]["vocab"] if not set(token) <= {"▁"} or token == "▁"}
    if tab:
        vocab = {"\t" if token == "<0x09>" else token: None for token in vocab}
    longest = 5
    runs = [blank * n for blank in ("\n", "▁") for n in range(longest, 1, -1)]
    added = ["<table>", *runs]
    tokens = [*vocab, *(token for token in "<tableh>\n" if token not in vocab), "<t", "able>", *added]
    # As in Gemma, merges that form one run are not beside each other: 4 + 1 comes first, 1 + 4 last.
    joined = [
        (blank * left, blank * (n - left))
        for left in range(longest - 1, 0, -1)
        for n in range(longest, left, -1)
        for blank in ("\n", "▁")
    ]
    tags = [("<", "t"), ("<t", "able>")]
    merges = [*joined, *(tuple(pair) for pair in state["model"]["merges"] if not set("".join(pair)) <= {"▁"})]
    state["model"] |= {
        "vocab": {token: number for number, token in enumerate(dict.fromkeys(tokens))},
        "merges": [*merges, *tags],
    }
    state["added_tokens"] = []
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>", "<start_of_turn>", "<end_of_turn>"])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    return _fast(tokenizer, bos="<s>", eos="</s>", pad="</s>", unk="<unk>")


def _fast(tokenizer: Tokenizer, **roles: str) -> PreTrainedTokenizerFast:
    named = {f"{role}_token": token for role, token in roles.items()}
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **named)
    fast.chat_template = CHATML
    return fast


def save(
    directory: Path, architecture: str, tokenizer: PreTrainedTokenizerFast | None = None, **changes: Any
) -> Any:
    """Saves a random model of that architecture; returns it."""
    tokenizer = tokenizer or byte_level()
    ids = {f"{role}_token_id": getattr(tokenizer, f"{role}_token_id") for role in ("bos", "eos", "pad")}
    rows = max(tokenizer.get_vocab().values()) + 3  # rows beyond the tokenizer, as padded models have
    model = tiny_model(architecture, rows, **ids, **changes)
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return model


class LlamaCpp:
    """llama.cpp with a GGUF file: its logits and tokens."""

    def __init__(self, path: Path, *, context: int = 256) -> None:
        xllamacpp = pytest.importorskip("xllamacpp")
        params = xllamacpp.CommonParams()
        params.model.path = str(path)
        params.n_ctx, params.n_parallel, params.verbosity = context, 1, -1
        params.warmup, params.ui, params.no_extra_bufts = False, False, True
        params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = 1
        self.server = start_llama_server(params)

    def logprobs(self, ids: list[int], vocab_size: int) -> torch.Tensor:
        """Log-probabilities [V] of the token after ``ids``.

        llama.cpp reports them only with text, so a bias forces an answer of plain text. The bias changes the
        sampled token but not the probabilities, which are those of the model's own logits.
        """
        (plain,) = self.ids("x")[-1:]
        body = {"prompt": ids, "n_predict": 1, "n_probs": vocab_size, "logit_bias": [[plain, 1000.0]]}
        answer = self.server.handle_completions({**body, "cache_prompt": False, "stream": False})
        logprobs = torch.full((vocab_size,), -torch.inf)
        for item in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            logprobs[item["id"]] = item["logprob"]
        return logprobs

    def greedy(self, ids: list[int], count: int, vocab_size: int) -> list[int]:
        """The likeliest tokens that follow ``ids``, one after the other."""
        continued = list(ids)
        for _ in range(count):
            continued.append(int(self.logprobs(continued, vocab_size).argmax()))
        return continued[len(ids) :]

    def ids(self, text: str, *, add_special: bool = False) -> list[int]:
        """The tokens of ``text``."""
        body = json.dumps({"content": text, "parse_special": True, "add_special": add_special}).encode()
        request = urllib.request.Request(
            f"{self.server.listening_address}/tokenize", body, {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)["tokens"]
