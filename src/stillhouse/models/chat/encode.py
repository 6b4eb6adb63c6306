"""Tokenizes a text piece by piece, as if its pieces had met only at generation time.

A model reads the tokens of a prompt and then writes its own; a token that straddles the border
would never occur then. So each piece is tokenized alone. Also keeps text that merely looks like
a special token (`<|im_end|>` typed by a user) from becoming one.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# SentencePiece tokenizers write a space before a text's first word; a piece in mid-text must not get one.
# This control character is a token of its own there (by byte fallback, or as itself in Gemma's vocabulary,
# which has both) and merges with nothing.
_CONTEXT, _BYTE_FALLBACK = "\x01", "<0x01>"


def encode_text(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token ids of a whole text, special tokens read as such, none added."""
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def encode_piece(
    tokenizer: PreTrainedTokenizerFast, piece: str, before: str, marks: Iterable[str]
) -> list[int]:
    """Token ids of ``piece``, which stands right after the text ``before``.

    Args:
        marks: the tokenizer's added tokens.
    """
    if not piece:
        return []
    if tokenizer.backend_tokenizer.token_to_id(_BYTE_FALLBACK) is None or not before:
        return encode_text(tokenizer, piece)
    context = next((mark for mark in marks if before.endswith(mark)), _CONTEXT)
    ids = encode_text(tokenizer, context + piece)
    return ids[ids.index(encode_text(tokenizer, context)[-1]) + 1 :]


def encode_inert(tokenizer: PreTrainedTokenizerFast, mark: str, marks: Sequence[str]) -> list[int]:
    """Token ids of the text ``mark`` as plain text: not the special token that it spells."""
    cut = next(
        (i for i in range(1, len(mark)) if not _holds(mark[:i], marks) and not _holds(mark[i:], marks)), None
    )
    parts = [mark[:cut], mark[cut:]] if cut else list(mark)
    ids: list[int] = []
    for part in parts:
        ids += encode_piece(tokenizer, part, _CONTEXT, marks)
    return ids


def added_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[str, bool]:
    """The tokenizer's added tokens, longest first, and whether each is special."""
    found = {token.content: bool(token.special) for token in tokenizer.added_tokens_decoder.values()}
    return dict(sorted(found.items(), key=lambda item: -len(item[0])))


def _holds(text: str, marks: Sequence[str]) -> bool:
    return any(mark in text for mark in marks)
