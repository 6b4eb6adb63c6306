"""Converts a fast tokenizer to GGUF's vocabulary: tokens, types, merges or scores, and special ids.

Two kinds are supported. `gpt2` is byte-level BPE; GGUF holds only the name of its pre-tokenizer. `llama` is
SentencePiece BPE with bytes for unknown characters; it joins the pair with the best score and has no merges,
so merges become scores where the result is the same. Unigram and WordPiece are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stillhouse.errors import ModelError
from stillhouse.export.rope import USE_TRANSFORMERS
from stillhouse.export.source import Source
from stillhouse.models import SPECIAL_TOKENS, STRIP_KEYS, TokenType, bpe_merges, pre_tokenizer_name

if TYPE_CHECKING:
    from gguf import GGUFWriter

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_SPACE = "▁"
_LOWEST_SCORE = -1e6  # of a token that no pair forms


@dataclass(frozen=True)
class Vocabulary:
    """The fields of `tokenizer.ggml.*`."""

    model: str
    """`gpt2` or `llama`."""
    pre: str
    """Name of the pre-tokenizer."""
    tokens: list[str]
    """In id order, one for each row of the embedding."""
    types: list[int]
    merges: list[str] = field(default_factory=list)
    """`gpt2` only."""
    scores: list[float] = field(default_factory=list)
    """`llama` only."""
    special: dict[str, int] = field(default_factory=dict)
    """GGUF's name of a special token -> id."""
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool = False
    strips: dict[str, list[int]] = field(default_factory=dict)
    """`lstrip`, `rstrip` -> ids of added tokens that swallow the white space on that side."""

    @property
    def stripping(self) -> list[str]:
        """The tokens that swallow white space in transformers. In llama.cpp none does."""
        return [self.tokens[number] for number in sorted(set().union(*self.strips.values()))]

    def add_to(self, writer: GGUFWriter) -> None:
        """Writes the fields into a header."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.merges:
            writer.add_token_merges(self.merges)
        if self.scores:
            writer.add_token_scores(self.scores)
        for name, number in self.special.items():
            writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        writer.add_add_space_prefix(self.add_space_prefix)
        for side, ids in self.strips.items():
            writer.add_array(STRIP_KEYS[side], ids)


def vocabulary_of(source: Source) -> Vocabulary:
    """The vocabulary of ``source``, with filler up to the rows of its embedding.

    Raises:
        ModelError: llama.cpp does not support the kind of tokenizer, or its pre-tokenizer.
    """
    backend = source.tokenizer.backend_tokenizer
    model = json.loads(backend.to_str())["model"]
    if model["type"] != "BPE":
        raise ModelError(
            f"{source.path}: tokenizers of the kind {model['type']} cannot be exported to GGUF (BPE can)",
            hint=USE_TRANSFORMERS,
        )
    tokens, types = _tokens(source, rows=source.config.get_text_config().vocab_size)
    start, end = _adds_bos_and_eos(source)
    common: dict[str, Any] = {"special": _special(source), "add_bos": start, "add_eos": end}
    common["strips"] = _strips(source)
    if model.get("byte_fallback"):
        _require_sentencepiece(source, model)
        for number, token in enumerate(tokens):
            if types[number] == TokenType.NORMAL and _BYTE.fullmatch(token):
                types[number] = TokenType.BYTE
        if isinstance(unknown := source.tokenizer.unk_token_id, int):
            types[unknown] = TokenType.UNKNOWN
        scores = _scores(source, tokens, types, bpe_merges(model))
        prefix = backend.encode("a", add_special_tokens=False).tokens[0].startswith(_SPACE)
        return Vocabulary("llama", "default", tokens, types, scores=scores, add_space_prefix=prefix, **common)
    return Vocabulary("gpt2", _pre_tokenizer(source), tokens, types, merges=bpe_merges(model), **common)


def _strips(source: Source) -> dict[str, list[int]]:
    rows = source.config.get_text_config().vocab_size
    added = {n: token for n, token in source.tokenizer.added_tokens_decoder.items() if n < rows}
    by_side = {
        side: [number for number, token in sorted(added.items()) if getattr(token, side)]
        for side in STRIP_KEYS
    }
    return {side: ids for side, ids in by_side.items() if ids}


def _tokens(source: Source, *, rows: int) -> tuple[list[str], list[int]]:
    """Tokens and types in id order; ids without a token become filler.

    Added tokens beyond the embedding are left out: the model has no row for them.
    """
    by_id = {number: token for token, number in source.tokenizer.get_vocab().items()}
    added = source.tokenizer.added_tokens_decoder
    tokens, types = [], []
    for number in range(rows):
        tokens.append(by_id.get(number, f"[PAD{number}]"))
        if number not in by_id:
            types.append(TokenType.UNUSED)
        elif number in added:
            types.append(TokenType.CONTROL if added[number].special else TokenType.USER_DEFINED)
        else:
            types.append(TokenType.NORMAL)
    return tokens, types


def _special(source: Source) -> dict[str, int]:
    """The special ids; `eot` is a second id that ends an answer.

    An end token is required: without one, llama.cpp ends answers at the token with the id 11, its default.
    """
    ids = {name: getattr(source.tokenizer, f"{role}_token_id") for role, name in SPECIAL_TOKENS.items()}
    special = {name: number for name, number in ids.items() if isinstance(number, int)}
    if not source.ends:
        raise ModelError(
            f"{source.path}: neither the tokenizer nor generation_config.json names an end token",
            hint="Set eos_token in tokenizer_config.json.",
        )
    end, *others = source.ends
    return {**special, "eos": end} | ({"eot": others[0]} if others else {})


def _adds_bos_and_eos(source: Source) -> tuple[bool, bool]:
    """Whether the tokenizer adds the start token before plain text, and the end token after it."""
    ids = source.tokenizer("a").input_ids
    bos, eos = source.tokenizer.bos_token_id, source.tokenizer.eos_token_id
    bare = source.tokenizer("a", add_special_tokens=False).input_ids
    start = bos is not None and ids[: len(ids) - len(bare)] and ids[0] == bos
    end = eos is not None and len(ids) > len(bare) + bool(start) and ids[-1] == eos
    if ids != [bos] * bool(start) + bare + [eos] * bool(end):
        raise ModelError(
            f"{source.path}: the tokenizer turns 'a' into {source.tokenizer.decode(ids)!r}, "
            "which GGUF cannot express",
            hint=USE_TRANSFORMERS,
        )
    return bool(start), bool(end)


def _pre_tokenizer(source: Source) -> str:
    """GGUF's name of a byte-level tokenizer's pre-tokenizer."""
    backend = source.tokenizer.backend_tokenizer
    name = pre_tokenizer_name(backend)
    normalizer = json.loads(backend.to_str())["normalizer"]
    if name is None or not _is_nfc(normalizer):
        what = "splits text in a way" if name is None else f"normalises text ({normalizer['type']})"
        raise ModelError(
            f"{source.path}: the tokenizer {what} that llama.cpp has no name for",
            hint="Other tokens for the same text would give other answers. " + USE_TRANSFORMERS,
        )
    return name


def _is_nfc(normalizer: dict[str, Any] | None) -> bool:
    """Whether the normaliser does nothing, or only composes characters (NFC).

    llama.cpp does not compose characters, so text that is not in NFC gets other tokens there. Qwen's
    converter accepts the same gap.
    """
    return normalizer is None or normalizer["type"] == "NFC" or normalizer.get("normalizers") == []


def _require_sentencepiece(source: Source, model: dict[str, Any]) -> None:
    """Refuses what llama.cpp's SentencePiece BPE does not do: splitting into words, ignoring merges."""
    backend = json.loads(source.tokenizer.backend_tokenizer.to_str())
    pre = backend["pre_tokenizer"]
    kind = pre and pre["type"]
    keeps_text_whole = (
        pre is None
        or (kind == "Metaspace" and pre.get("split") is False)
        or (kind == "Split" and pre["pattern"] == {"String": " "} and _replaces_spaces(backend["normalizer"]))
    )
    if not keeps_text_whole or model.get("ignore_merges"):
        raise ModelError(
            f"{source.path}: the tokenizer falls back to bytes and splits text into words ({kind}), "
            "which llama.cpp does not",
            hint=USE_TRANSFORMERS,
        )


def _replaces_spaces(normalizer: dict[str, Any] | None) -> bool:
    """Whether the normaliser replaces all spaces, so that splitting at spaces does nothing."""
    steps = [normalizer, *(normalizer or {}).get("normalizers", [])]
    return any(
        step is not None and step["type"] == "Replace" and step["pattern"] == {"String": " "}
        for step in steps
    )


def _scores(source: Source, tokens: Sequence[str], types: Sequence[int], merges: list[str]) -> list[float]:
    """Scores with which SentencePiece joins the same pairs in the same order as ``merges``.

    SentencePiece joins any two tokens whose concatenation is a token, best score first. So all pairs that
    form a token must be among the merges, one directly after the other.

    Added tokens are exempt. They are matched in the text before anything is joined, so no pair ever forms
    one. Gemma's runs of spaces are not matched, because text has no mark for spaces. They grow from the left
    by one space each; that scores of longer runs are better is enough, and `check_gguf` encodes runs of every
    length.
    """
    exempt = {str(token) for token in source.tokenizer.added_tokens_decoder.values()}
    order: dict[str, int] = {}  # token -> rank of its first merge; a lower rank is a better score
    pairs_merged: set[tuple[str, str]] = set()
    for merge in merges:
        left, right = merge.split(" ")
        pairs_merged.add((left, right))
        joined = left + right
        if joined not in exempt and joined in order and order[joined] != len(order) - 1:
            raise _not_by_scores(
                source, f"{left!r} and {right!r} are joined later than other pairs that form {joined!r}"
            )
        order.setdefault(joined, len(order))
    known = set(tokens)
    for token, token_type in zip(tokens, types, strict=True):
        # SentencePiece would also join pairs that the merges do not contain.
        pairs = {(token[:cut], token[cut:]) for cut in range(1, len(token))}
        missing = {pair for pair in pairs if known.issuperset(pair)} - pairs_merged
        if missing and token not in exempt and (token in order or token_type == TokenType.NORMAL):
            raise _not_by_scores(source, f"{min(missing)} form {token!r} and are not joined")
    return [-float(order[token]) if token in order else _LOWEST_SCORE for token in tokens]


def _not_by_scores(source: Source, why: str) -> ModelError:
    return ModelError(
        f"{source.path}: SentencePiece's scores cannot express the tokenizer's merges: {why}",
        hint=USE_TRANSFORMERS,
    )
