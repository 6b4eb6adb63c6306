"""The bytes of each token, to align the tokens of two tokenizers.

A token is not always a whole character: byte-level tokenizers split an emoji or a Chinese character into
several tokens, and only byte offsets can address the borders between them.
"""

from __future__ import annotations

import functools
import json
import re
from typing import TYPE_CHECKING, Any

from stillhouse.errors import TokenizerMismatchError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

_BYTE_TOKEN = re.compile(r"<0x([0-9A-F]{2})>")  # SentencePiece's spelling of a byte


def token_bytes(tokenizer: PreTrainedTokenizerFast) -> list[bytes | None]:
    """The bytes of each id; None where no token has the id. Concatenated, they are the encoded text.

    The bytes of added tokens (special ones, too) are those of their name.

    Raises:
        TokenizerMismatchError: it is neither a byte-level nor a SentencePiece tokenizer.
    """
    to_bytes = _converter(json.loads(tokenizer.backend_tokenizer.to_str()))
    added = {token.content for token in tokenizer.added_tokens_decoder.values()}
    vocabulary = tokenizer.get_vocab()
    bytes_of: list[bytes | None] = [None] * (max(vocabulary.values()) + 1)
    for token, number in vocabulary.items():
        bytes_of[number] = token.encode() if token in added else to_bytes(token)
    return bytes_of


def _converter(backend: dict[str, Any]) -> Any:
    """The function from a token's spelling in the vocabulary to its bytes."""
    steps = json.dumps([backend.get("pre_tokenizer"), backend.get("decoder")])
    if '"ByteLevel"' in steps:
        return _from_byte_level
    if '"ByteFallback"' in steps or "▁" in json.dumps(
        [backend.get("normalizer"), backend.get("decoder")], ensure_ascii=False
    ):
        return _from_sentencepiece
    raise TokenizerMismatchError(
        "the bytes of this tokenizer's tokens are unknown: it is neither byte-level nor SentencePiece",
        hint="Train on the text alone: objective.kind=cross_entropy.",
    )


def _from_byte_level(token: str) -> bytes:
    alphabet = _byte_alphabet()
    if not alphabet.keys() >= set(token):
        return token.encode()
    return bytes(alphabet[character] for character in token)


def _from_sentencepiece(token: str) -> bytes:
    if byte := _BYTE_TOKEN.fullmatch(token):
        return bytes([int(byte[1], 16)])
    return token.replace("▁", " ").encode()


@functools.cache
def _byte_alphabet() -> dict[str, int]:
    """GPT-2's alphabet: printable Latin-1 characters are their own bytes, U+0100 and later the others."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(others)}
