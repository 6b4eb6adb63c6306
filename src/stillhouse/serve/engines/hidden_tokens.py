"""Recovers the tokens that llama.cpp does not report: those that end inside a character.

llama.cpp's server reports a token together with its text, and waits with the text until the last character is
complete. Of the tokens in between it reports only how many there were, so neither their ids nor their
log-probabilities are known. But their bytes are: the text that arrives, less the bytes of the reported token.
:func:`spellings` finds the ids whose bytes these are. It is nearly always one sequence; if there are several,
the model's own probabilities decide (:func:`recover`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from stillhouse.models import TokenLogprob, token_bytes

NextLogprobs = Callable[[Sequence[int], int], Awaitable[list[tuple[int, float]]]]
"""(ids, how many) -> the likeliest tokens after the ids and their log-probabilities, in descending order."""

TRIED_FIRST = 64
"""Likeliest tokens in which a hidden token is looked for, before the whole vocabulary is requested."""
ALL = 10_000_000
"""More than any vocabulary has."""
MAX_SPELLINGS = 32


class TokenTable:
    """The bytes of a tokenizer's tokens, in both directions."""

    def __init__(self, tokenizer: Any) -> None:
        self.bytes_of = token_bytes(tokenizer)
        """Id -> bytes; None where no token has the id."""
        self.ids_of: dict[bytes, list[int]] = {}
        for token_id, spelled in enumerate(self.bytes_of):
            if spelled:
                self.ids_of.setdefault(spelled, []).append(token_id)
        self.longest = max(map(len, self.ids_of))
        self.special = [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]
        """Names of the special tokens, which llama.cpp leaves out of the text unless they are preserved."""

    def spelling(self, token_id: int) -> bytes | None:
        """The bytes of a token; None where the tokenizer has none of this id, as in a padded vocabulary."""
        return self.bytes_of[token_id] if token_id < len(self.bytes_of) else None


def spellings(table: TokenTable, before: bytes, text: bytes, count: int) -> list[tuple[int, ...]]:
    """The sequences of ``count`` ids that spell ``text`` and are all hidden.

    Args:
        before: the text before it, at least its last three bytes.
    """
    found: list[tuple[int, ...]] = []

    def extend(ids: tuple[int, ...], start: int) -> None:
        if len(found) >= MAX_SPELLINGS:
            return
        if len(ids) == count:
            if start == len(text):
                found.append(ids)
            return
        for end in range(start + 1, min(len(text), start + table.longest) + 1):
            # A hidden token is one after which the text ends inside a character.
            if ends_inside_character(before + text[:end]):
                for token_id in table.ids_of.get(text[start:end], ()):
                    extend((*ids, token_id), end)

    extend((), 0)
    return found


def ends_inside_character(text: bytes) -> bool:
    """Whether a UTF-8 text ends with the beginning of a character, as llama.cpp judges it."""
    for distance in range(1, min(4, len(text)) + 1):
        byte = text[-distance]
        length = 2 if byte & 0xE0 == 0xC0 else 3 if byte & 0xF0 == 0xE0 else 4 if byte & 0xF8 == 0xF0 else 0
        if distance < length:
            return True
    return False


async def recover(
    candidates: Sequence[tuple[int, ...]],
    prefix: Sequence[int],
    top: int,
    next_logprobs: NextLogprobs,
) -> list[TokenLogprob]:
    """The likeliest of some spellings, with the log-probabilities of its tokens.

    Args:
        prefix: ids of the prompt and of the answer before it.
        top: likeliest tokens to report with each.
    """
    scored = [await _score(ids, prefix, top, next_logprobs) for ids in candidates]
    return max(scored, key=lambda tokens: sum(token.logprob for token in tokens), default=[])


async def _score(
    ids: Sequence[int], prefix: Sequence[int], top: int, next_logprobs: NextLogprobs
) -> list[TokenLogprob]:
    tokens = []
    for index, token_id in enumerate(ids):
        known = (*prefix, *ids[:index])
        likeliest = await next_logprobs(known, max(top, TRIED_FIRST))
        logprobs = dict(likeliest)
        if token_id not in logprobs:
            logprobs = dict(await next_logprobs(known, ALL))
        tokens.append(TokenLogprob(token_id, logprobs.get(token_id, float("-inf")), tuple(likeliest[:top])))
    return tokens
