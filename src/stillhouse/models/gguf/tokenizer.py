"""Rebuilds tokenizers from GGUF metadata, checks them against it, and compares tokenizers.

A conversion that guesses silently loses special tokens (R1-Distill-Qwen's GGUF through transformers: four ids
are missing, the start token is outside the vocabulary, and the user marker becomes five pieces). Here every
id must have its token, and every added token must encode to its one id; otherwise the file is refused.
"""

from __future__ import annotations

import functools
import json
import re
from typing import TYPE_CHECKING, Any

from stillhouse.errors import TokenizerMismatchError
from stillhouse.hashing import sha256_json
from stillhouse.models.gguf.file import GgufFile
from stillhouse.models.gguf.pretokenizers import pre_tokenizer
from stillhouse.models.gguf.token_types import SPECIAL_TOKENS, STRIP_KEYS, TokenType

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

_LISTS = {"tokens": str, "merges": str, "token_type": int, "scores": float}
_PADDING_TOKEN = re.compile(r"\[PAD\d+\]")  # llama.cpp's filler for rows of a padded embedding
_PROBES = (
    "The 3 quick brown foxes jumped over 1234567 lazy dogs' tails.\n\n\tIt's 25°C — naïve café, isn't it?  ",
    "def f(x):\n    return x**2  # 数学 и математика 🙂\r\n",
)


def tokenizer_from_gguf(file: GgufFile) -> PreTrainedTokenizerFast:
    """The tokenizer that the header of ``file`` describes.

    Raises:
        TokenizerMismatchError: no tokenizer agrees with the header.
    """
    from transformers import PreTrainedTokenizerFast

    _require_types(file)
    tokens = gguf_tokens(file)
    specials = _special_ids(file, len(tokens))
    added = _added_ids(file, tokens, set(specials.values()))
    kind = file.require("tokenizer.ggml.model")
    if kind == "gpt2":
        backend = _byte_level(file, tokens)
    elif kind == "llama":
        backend = _sentencepiece(file, tokens)
    else:
        raise TokenizerMismatchError(
            f"{file.path}: tokenizers of the kind {kind!r} cannot be rebuilt from GGUF",
            hint="Use the original safetensors directory.",
        )
    strips = {side: set(file.metadata.get(key, ())) for side, key in STRIP_KEYS.items()}
    _add_tokens(backend, tokens, added, strips)
    try:
        _add_bos(backend, file, tokens, specials)
    except ValueError as error:  # the notation of TemplateProcessing cannot express this start token
        raise TokenizerMismatchError(f"{file.path}: unusable start token: {error}") from error
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=file.architecture_field("context_length"),
        clean_up_tokenization_spaces=False,
        **{f"{role}_token": tokens[number] for role, number in specials.items()},
    )
    check_tokenizer(tokenizer, file)
    return tokenizer


def _require_types(file: GgufFile) -> None:
    """Raises TokenizerMismatchError where a header field has the wrong type."""
    size = len(file.require("tokenizer.ggml.tokens"))
    for name, kind in _LISTS.items():
        value = file.metadata.get(f"tokenizer.ggml.{name}")
        if value is None:
            continue
        if not isinstance(value, list) or not all(type(item) is kind for item in value):
            raise TokenizerMismatchError(
                f"{file.path}: tokenizer.ggml.{name} is not a list of {kind.__name__}"
            )
        if name == "scores" and len(value) != size:
            raise TokenizerMismatchError(f"{file.path}: {size} tokens but {len(value)} scores")
    for key in STRIP_KEYS.values():
        ids = file.metadata.get(key, [])
        if not isinstance(ids, list) or not all(type(number) is int for number in ids):
            raise TokenizerMismatchError(f"{file.path}: {key} is not a list of ids")
    for word in SPECIAL_TOKENS.values():
        number = file.metadata.get(f"tokenizer.ggml.{word}_token_id")
        if number is not None and type(number) is not int:
            raise TokenizerMismatchError(f"{file.path}: the {word} token {number!r:.60} is not an id")
    for name in ("tokenizer.ggml.model", "tokenizer.ggml.pre", "tokenizer.chat_template"):
        if not isinstance(file.metadata.get(name, ""), str):
            raise TokenizerMismatchError(f"{file.path}: {name} is not text")


def check_tokenizer(tokenizer: PreTrainedTokenizerFast, file: GgufFile) -> None:
    """Compares ``tokenizer`` with the header of ``file``.

    Raises:
        TokenizerMismatchError: an id or special token differs; the message names the first.
    """
    tokens = gguf_tokens(file)
    specials = _special_ids(file, len(tokens))
    backend = tokenizer.backend_tokenizer
    for number, token in enumerate(tokens):
        if backend.id_to_token(number) != token or backend.token_to_id(token) != number:
            raise TokenizerMismatchError(
                f"{file.path}: id {number} is {token!r} in the header but {backend.id_to_token(number)!r} "
                f"in the tokenizer, where that token has the id {backend.token_to_id(token)}"
            )
    for role, number in specials.items():
        if (rebuilt := getattr(tokenizer, f"{role}_token_id")) != number:
            raise TokenizerMismatchError(
                f"{file.path}: the {role} token is {number} in the header but {rebuilt} when rebuilt"
            )
    for number in _added_ids(file, tokens, set(specials.values())):
        ids = backend.encode(tokens[number], add_special_tokens=False).ids
        if ids != [number]:
            raise TokenizerMismatchError(
                f"{file.path}: the token {tokens[number]!r} (id {number}) encodes to the ids {ids}"
            )


def same_tokenizer(a: PreTrainedTokenizerFast, b: PreTrainedTokenizerFast) -> bool:
    """Whether both give the same ids for the same text; padded sizes can differ."""
    return tokenizer_difference(a, b) is None


def tokenizer_difference(
    a: PreTrainedTokenizerFast, b: PreTrainedTokenizerFast, *, rows: int | None = None
) -> str | None:
    """A description of the first difference between two tokenizers; None when they are the same.

    Compares the id of every token, the merges, and the ids of a few texts.

    Args:
        rows: only tokens with smaller ids are compared; None compares all.
    """
    vocab_a, vocab_b = (
        {token: number for token, number in _vocabulary(one).items() if rows is None or number < rows}
        for one in (a, b)
    )
    if vocab_a != vocab_b:
        token, _ = min(vocab_a.items() ^ vocab_b.items(), key=lambda item: item[1])
        return (
            f"the token {token!r} has the id {vocab_a.get(token)} in one, {vocab_b.get(token)} in the other"
        )
    merges_a, merges_b = _merges(a.backend_tokenizer), _merges(b.backend_tokenizer)
    if merges_a != merges_b:
        return f"their merges differ ({len(merges_a)} against {len(merges_b)})"
    for text in _PROBES:
        ids_a, ids_b = (t.encode(text, add_special_tokens=False, verbose=False) for t in (a, b))
        if ids_a != ids_b:
            return f"they split the text {text!r} differently"
    return None


def gguf_tokens(file: GgufFile) -> list[str]:
    """Every token of the header in id order, without filler at the end.

    Raises:
        TokenizerMismatchError: a token occurs twice, so that its id is ambiguous.
    """
    tokens = list(file.require("tokenizer.ggml.tokens"))
    types = _types(file)
    while tokens and types[len(tokens) - 1] == TokenType.UNUSED and _PADDING_TOKEN.fullmatch(tokens[-1]):
        tokens.pop()
    if len(set(tokens)) < len(tokens):
        seen: set[str] = set()
        duplicate = next(token for token in tokens if token in seen or seen.add(token))
        raise TokenizerMismatchError(f"{file.path}: the token {duplicate!r} has two ids")
    return tokens


def tokenizer_hash(tokens: list[str], merges: list[str]) -> str:
    """SHA-256 over tokens in id order and merges."""
    return sha256_json([tokens, merges])


def _types(file: GgufFile) -> list[int]:
    tokens = file.require("tokenizer.ggml.tokens")
    types = file.metadata.get("tokenizer.ggml.token_type", [1] * len(tokens))
    if len(types) != len(tokens):
        raise TokenizerMismatchError(f"{file.path}: {len(tokens)} tokens but {len(types)} token types")
    return types


def _special_ids(file: GgufFile, size: int) -> dict[str, int]:
    """transformers' name of each special token -> id. Raises where an id lies outside the vocabulary."""
    specials = {}
    for role, word in SPECIAL_TOKENS.items():
        number = file.metadata.get(f"tokenizer.ggml.{word}_token_id")
        if number is None or (role in ("pad", "unk") and number >= size):
            continue  # padding tokens often lie beyond the vocabulary; no text needs them
        if number >= size:
            raise TokenizerMismatchError(
                f"{file.path}: the {role} token {number} lies outside the {size} tokens"
            )
        specials[role] = number
    return specials


def _added_ids(file: GgufFile, tokens: list[str], specials: set[int]) -> dict[int, bool]:
    """Ids of added tokens, which are matched before any merging -> whether they are special (not decoded)."""
    types = _types(file)
    is_added = (
        TokenType.UNKNOWN,
        TokenType.CONTROL,
        TokenType.USER_DEFINED,
    )  # as llama.cpp's cache of special tokens
    added = {n: types[n] != TokenType.USER_DEFINED for n in range(len(tokens)) if types[n] in is_added}
    if file.require("tokenizer.ggml.model") == "gpt2":
        # Byte-level merging cannot produce a token of other characters, whatever its type is.
        alphabet = _byte_alphabet()
        added |= {
            n: False for n, token in enumerate(tokens) if n not in added and not alphabet.issuperset(token)
        }
        added |= {n: True for n in specials if types[n] != TokenType.USER_DEFINED}
    return dict(sorted(added.items()))


@functools.cache
def _byte_alphabet() -> frozenset[str]:
    from tokenizers.pre_tokenizers import ByteLevel

    return frozenset(ByteLevel.alphabet())


def _byte_level(file: GgufFile, tokens: list[str]) -> Tokenizer:
    from tokenizers import Tokenizer, decoders, models

    pre, normalizer, options = pre_tokenizer(file.metadata.get("tokenizer.ggml.pre", "default"))
    merges = [tuple(merge.split(" ")) for merge in file.require("tokenizer.ggml.merges")]
    vocab = {token: number for number, token in enumerate(tokens)}
    if invalid := next(
        (m for m in merges if len(m) != 2 or "".join(m) not in vocab or not vocab.keys() >= set(m)), None
    ):
        raise TokenizerMismatchError(
            f"{file.path}: the merge {' '.join(invalid)!r} uses tokens that do not exist"
        )
    backend = Tokenizer(models.BPE(vocab, merges, fuse_unk=False, **options))
    backend.pre_tokenizer = pre
    backend.decoder = decoders.ByteLevel()
    if normalizer is not None:
        backend.normalizer = normalizer
    return backend


def _sentencepiece(file: GgufFile, tokens: list[str]) -> Tokenizer:
    """SentencePiece BPE: any pair that forms a token is a merge, best score first."""
    from tokenizers import Tokenizer, decoders, models, normalizers

    scores = file.require("tokenizer.ggml.scores")
    types = _types(file)
    vocab = {token: number for number, token in enumerate(tokens)}
    merges = []
    for token, number in vocab.items():
        # Runs of spaces can be added tokens, too (Gemma), but only joining forms them: text has no "▁".
        if types[number] == TokenType.NORMAL or (types[number] == TokenType.USER_DEFINED and "▁" in token):
            pairs = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
            merges += [
                (-scores[number], vocab[a], vocab[b], a, b) for a, b in pairs if a in vocab and b in vocab
            ]
    merges.sort()
    unknown = _special_ids(file, len(tokens)).get("unk")
    backend = Tokenizer(
        models.BPE(
            vocab,
            [(a, b) for *_, a, b in merges],
            unk_token=tokens[unknown] if unknown is not None else None,
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    prefix = file.metadata.get("tokenizer.ggml.add_space_prefix", True)
    spaces = normalizers.Replace(" ", "▁")
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), spaces]) if prefix else spaces
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    backend.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)] if prefix else steps)
    return backend


def _add_tokens(
    backend: Tokenizer, tokens: list[str], added: dict[int, bool], strips: dict[str, set[int]]
) -> None:
    from tokenizers import AddedToken

    backend.add_tokens(
        [
            AddedToken(
                tokens[number],
                special=special,
                normalized=False,
                **{side: number in ids for side, ids in strips.items()},
            )
            for number, special in added.items()
        ]
    )


def _add_bos(backend: Tokenizer, file: GgufFile, tokens: list[str], specials: dict[str, int]) -> None:
    """Adds the start token to plain text where the header says so (chat templates write their own)."""
    from tokenizers import processors

    kind = file.require("tokenizer.ggml.model")
    if "bos" in specials and file.metadata.get("tokenizer.ggml.add_bos_token", kind == "llama"):
        bos = tokens[specials["bos"]]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos}:0 $A:0", pair=f"{bos}:0 $A:0 {bos}:1 $B:1", special_tokens=[(bos, specials["bos"])]
        )


def _vocabulary(tokenizer: PreTrainedTokenizerFast) -> dict[str, int]:
    return {
        token: number
        for token, number in tokenizer.get_vocab().items()
        if not _PADDING_TOKEN.fullmatch(token)
    }


def _merges(backend: Tokenizer) -> list[str]:
    return bpe_merges(json.loads(backend.to_str())["model"])


def bpe_merges(model: dict[str, Any]) -> list[str]:
    """Merges of a tokenizer.json model as "a b"; reads both spellings of the format."""
    return [merge if isinstance(merge, str) else " ".join(merge) for merge in model.get("merges", [])]
