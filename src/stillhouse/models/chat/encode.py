"""Tokenizes a text segment by segment, as if its segments had met only at generation time.

A model reads the tokens of a prompt and then writes its own, so a token that straddles the border never
occurs. Each segment is therefore tokenized alone. Text that only looks like a special token (`<|im_end|>`
typed by a user) stays text.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

# SentencePiece tokenizers write a space before a text's first word; a segment in mid-text must not get one.
# This control character is a token of its own there (by byte fallback, or as itself in Gemma's vocabulary,
# which has both) and merges with nothing.
_CONTEXT, _BYTE_FALLBACK = "\x01", "<0x01>"


def encode_text(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token ids of a whole text. Special tokens in it are read as such; none are added."""
    return tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids


def encode_segment(
    tokenizer: PreTrainedTokenizerFast, segment: str, before: str, added_tokens: Iterable[str]
) -> list[int]:
    """Token ids of ``segment``, which follows the text ``before``.

    Args:
        added_tokens: the tokenizer's added tokens.
    """
    if not segment:
        return []
    if tokenizer.backend_tokenizer.token_to_id(_BYTE_FALLBACK) is None or not before:
        return encode_text(tokenizer, segment)
    # Normalizers run anew after an added token, so a segment that follows one needs it as its context.
    context = next((token for token in added_tokens if before.endswith(token)), _CONTEXT)
    ids = encode_text(tokenizer, context + segment)
    return ids[ids.index(encode_text(tokenizer, context)[-1]) + 1 :]


def encode_as_text(tokenizer: PreTrainedTokenizerFast, token: str, added_tokens: Sequence[str]) -> list[int]:
    """Token ids of the text ``token`` as plain text, not the special token that it spells."""
    cut = next(
        (
            i
            for i in range(1, len(token))
            if not _contains_any(token[:i], added_tokens) and not _contains_any(token[i:], added_tokens)
        ),
        None,
    )
    parts = [token[:cut], token[cut:]] if cut else list(token)
    ids: list[int] = []
    for part in parts:
        ids += encode_segment(tokenizer, part, _CONTEXT, added_tokens)
    return ids


def added_tokens(tokenizer: PreTrainedTokenizerFast) -> dict[str, bool]:
    """The tokenizer's added tokens, longest first, and whether each is special."""
    is_special = {token.content: bool(token.special) for token in tokenizer.added_tokens_decoder.values()}
    # Longest first, so that a token is never replaced inside of a longer one.
    return dict(sorted(is_special.items(), key=lambda item: -len(item[0])))


def _contains_any(text: str, tokens: Sequence[str]) -> bool:
    return any(token in text for token in tokens)
