"""A fast tokenizer as GGUF's vocabulary: tokens, types, merges or scores, and the special ids.

Two kinds are known to llama.cpp and here. `gpt2` is byte-level BPE, whose way of cutting text into
words GGUF gives by name only. `llama` is SentencePiece's BPE with bytes for unknown characters, which
joins the pair with the best score and knows no merges; merges become scores where that says the same.
Unigram and WordPiece are refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stillhouse.errors import ModelError
from stillhouse.export.source import Source
from stillhouse.models import bpe_merges, pre_tokenizer_name

if TYPE_CHECKING:
    from gguf import GGUFWriter

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6  # tokenizer.ggml.token_type
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
_ROLES = {"bos": "bos", "eos": "eos", "pad": "padding", "unk": "unknown"}  # transformers' words, GGUF's
_SPACE = "▁"
_LOWEST = -1e6  # score of a token that no pair makes
_USE_TRANSFORMERS = "Serve the safetensors with transformers instead."


@dataclass(frozen=True)
class Vocabulary:
    """What `tokenizer.ggml.*` says."""

    model: str
    """`gpt2` or `llama`."""
    pre: str
    """How text is cut before merging."""
    tokens: list[str]
    """In id order, as many as the embedding has rows."""
    types: list[int]
    merges: list[str] = field(default_factory=list)
    """`gpt2` only."""
    scores: list[float] = field(default_factory=list)
    """`llama` only."""
    special: dict[str, int] = field(default_factory=dict)
    """GGUF's word for a role -> id."""
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool = False

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
        for word, number in self.special.items():
            writer.add_uint32(f"tokenizer.ggml.{word}_token_id", number)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        writer.add_add_space_prefix(self.add_space_prefix)


def vocabulary_of(source: Source) -> Vocabulary:
    """The vocabulary of ``source``, filled up to the rows of its embedding.

    Raises:
        ModelError: a kind of tokenizer, or a way of cutting text, that llama.cpp does not know.
    """
    backend = source.tokenizer.backend_tokenizer
    model = json.loads(backend.to_str())["model"]
    if model["type"] != "BPE":
        raise ModelError(
            f"{source.path}: tokenizers of the kind {model['type']} cannot be exported to GGUF (BPE can)",
            hint=_USE_TRANSFORMERS,
        )
    tokens, types = _tokens(source, rows=source.config.get_text_config().vocab_size)
    start, end = _ends_of_text(source)
    common: dict[str, Any] = {"special": _special(source), "add_bos": start, "add_eos": end}
    if model.get("byte_fallback"):
        _require_sentencepiece(source, model)
        for number, token in enumerate(tokens):
            if types[number] == NORMAL and _BYTE.fullmatch(token):
                types[number] = BYTE
        if isinstance(unknown := source.tokenizer.unk_token_id, int):
            types[unknown] = UNKNOWN
        scores = _scores(source, tokens, types, bpe_merges(model))
        prefix = backend.encode("a", add_special_tokens=False).tokens[0].startswith(_SPACE)
        return Vocabulary("llama", "default", tokens, types, scores=scores, add_space_prefix=prefix, **common)
    return Vocabulary("gpt2", _pre(source), tokens, types, merges=bpe_merges(model), **common)


def _tokens(source: Source, *, rows: int) -> tuple[list[str], list[int]]:
    """Tokens and types in id order; ids that the tokenizer does not know become filler."""
    by_id = {number: token for token, number in source.tokenizer.get_vocab().items()}
    added = source.tokenizer.added_tokens_decoder
    tokens, types = [], []
    for number in range(rows):
        tokens.append(by_id.get(number, f"[PAD{number}]"))
        if number not in by_id:
            types.append(UNUSED)
        elif number in added:
            types.append(CONTROL if added[number].special else USER_DEFINED)
        else:
            types.append(NORMAL)
    return tokens, types


def _special(source: Source) -> dict[str, int]:
    """The special ids; `eot` is an id beside the end token at which an answer ends too.

    A file without an end token would end its answers at whatever has the id 11 (llama.cpp's default).
    """
    roles = {word: getattr(source.tokenizer, f"{role}_token_id") for role, word in _ROLES.items()}
    special = {word: number for word, number in roles.items() if isinstance(number, int)}
    if not source.ends:
        raise ModelError(
            f"{source.path}: neither its tokenizer nor its generation_config.json names an end token",
            hint="Set eos_token in tokenizer_config.json.",
        )
    end, *others = source.ends
    return {**special, "eos": end} | ({"eot": others[0]} if others else {})


def _ends_of_text(source: Source) -> tuple[bool, bool]:
    """Whether plain text gets the start token before it and the end token after it."""
    ids = source.tokenizer("a").input_ids
    bos, eos = source.tokenizer.bos_token_id, source.tokenizer.eos_token_id
    bare = source.tokenizer("a", add_special_tokens=False).input_ids
    start = bos is not None and ids[: len(ids) - len(bare)] and ids[0] == bos
    end = eos is not None and len(ids) > len(bare) + bool(start) and ids[-1] == eos
    if ids != [bos] * bool(start) + bare + [eos] * bool(end):
        raise ModelError(
            f"{source.path}: the tokenizer makes {source.tokenizer.decode(ids)!r} of 'a', which GGUF cannot",
            hint=_USE_TRANSFORMERS,
        )
    return bool(start), bool(end)


def _pre(source: Source) -> str:
    """The name of how a byte-level tokenizer cuts text."""
    backend = source.tokenizer.backend_tokenizer
    name = pre_tokenizer_name(backend)
    normalizer = json.loads(backend.to_str())["normalizer"]
    if name is None or not _is_nfc(normalizer):
        what = "cuts text in a way" if name is None else f"normalises text ({normalizer['type']})"
        raise ModelError(
            f"{source.path}: the tokenizer {what} that llama.cpp has no name for",
            hint="Other tokens for the same text would be other answers. " + _USE_TRANSFORMERS,
        )
    return name


def _is_nfc(normalizer: dict[str, Any] | None) -> bool:
    """Whether it changes nothing that llama.cpp would not: nothing, or composing characters.

    llama.cpp does not compose; text that is not in NFC gets other tokens there (Qwen's converter has the
    same gap).
    """
    return normalizer is None or normalizer["type"] == "NFC" or normalizer.get("normalizers") == []


def _require_sentencepiece(source: Source, model: dict[str, Any]) -> None:
    """Refuses what SentencePiece's BPE in llama.cpp does not do: cutting into words, ignoring merges."""
    described = json.loads(source.tokenizer.backend_tokenizer.to_str())
    pre = described["pre_tokenizer"]
    kind = pre and pre["type"]
    whole = (
        pre is None
        or (kind == "Metaspace" and pre.get("split") is False)
        or (
            kind == "Split"
            and pre["pattern"] == {"String": " "}
            and _replaces_spaces(described["normalizer"])
        )
    )
    if not whole or model.get("ignore_merges"):
        raise ModelError(
            f"{source.path}: the tokenizer falls back to bytes and cuts text into words ({kind}), "
            "which llama.cpp does not",
            hint=_USE_TRANSFORMERS,
        )


def _replaces_spaces(normalizer: dict[str, Any] | None) -> bool:
    """Whether no space is left after normalising, so that splitting at spaces does nothing."""
    steps = [normalizer, *(normalizer or {}).get("normalizers", [])]
    return any(
        step is not None and step["type"] == "Replace" and step["pattern"] == {"String": " "}
        for step in steps
    )


def _scores(source: Source, tokens: Sequence[str], types: Sequence[int], merges: list[str]) -> list[float]:
    """Scores by which SentencePiece joins the same pairs in the same order as ``merges``.

    It joins any two tokens whose text together is a token, the best such token first. So a token's pairs
    must stand together in the merges, and all pairs that make it must be there.
    """
    order: dict[str, int] = {}
    made: set[tuple[str, str]] = set()
    for merge in merges:
        left, right = merge.split(" ")
        made.add((left, right))
        joined = left + right
        if joined in order and order[joined] != len(order) - 1:
            raise _not_by_scores(
                source, f"{left!r} and {right!r} are joined later than others that make {joined!r}"
            )
        order.setdefault(joined, len(order))
    known = set(tokens)
    for token, kind in zip(tokens, types, strict=True):
        pairs = {(token[:cut], token[cut:]) for cut in range(1, len(token))}
        lacking = {pair for pair in pairs if known.issuperset(pair)} - made
        if lacking and (token in order or kind == NORMAL):
            raise _not_by_scores(source, f"{min(lacking)} make {token!r} and are not joined")
    return [-float(order[token]) if token in order else _LOWEST for token in tokens]


def _not_by_scores(source: Source, why: str) -> ModelError:
    return ModelError(
        f"{source.path}: the tokenizer's merges cannot be said by SentencePiece's scores: {why}",
        hint=_USE_TRANSFORMERS,
    )
