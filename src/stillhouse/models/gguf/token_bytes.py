"""The bytes that each token stands for, so that texts of two tokenizers can be laid side by side.

A token need not be a whole character: byte-level tokenizers cut an emoji or a Chinese character into several
tokens, and only bytes name the places between them.
"""

from __future__ import annotations

import functools
import json
import re
from typing import TYPE_CHECKING, Any

from stillhouse.errors import TokenizerMismatchError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")  # SentencePiece's spelling of a byte it has no piece for


def token_bytes(tokenizer: PreTrainedTokenizerFast) -> list[bytes | None]:
    """What each id stands for; None where no token has the id. Joined, they are the text that was encoded.

    Added tokens (special ones too) stand for the text they are written as.

    Raises:
        TokenizerMismatchError: it is neither a byte-level nor a SentencePiece tokenizer.
    """
    read = _reader(json.loads(tokenizer.backend_tokenizer.to_str()))
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    vocabulary = tokenizer.get_vocab()
    found: list[bytes | None] = [None] * (max(vocabulary.values()) + 1)
    for token, number in vocabulary.items():
        found[number] = token.encode() if token in added else read(token)
    return found


def _reader(backend: dict[str, Any]) -> Any:
    """From a token as it is spelled in the vocabulary to its bytes."""
    steps = json.dumps([backend.get("pre_tokenizer"), backend.get("decoder")])
    if '"ByteLevel"' in steps:
        return _of_byte_level
    if '"ByteFallback"' in steps or "▁" in json.dumps(
        [backend.get("normalizer"), backend.get("decoder")], ensure_ascii=False
    ):
        return _of_sentencepiece
    raise TokenizerMismatchError(
        "this tokenizer's tokens cannot be read as bytes: it is neither byte-level nor SentencePiece",
        hint="Learn from the text alone: objective.kind=cross_entropy.",
    )


def _of_byte_level(token: str) -> bytes:
    alphabet = _byte_of_character()
    if not alphabet.keys() >= set(token):
        return token.encode()
    return bytes(alphabet[character] for character in token)


def _of_sentencepiece(token: str) -> bytes:
    if byte := _BYTE_TOKEN.fullmatch(token):
        return bytes([int(byte[1], 16)])
    return token.replace("▁", " ").encode()


@functools.cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 characters stand for themselves, the other bytes from 256 on."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}
