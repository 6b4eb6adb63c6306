"""Formats log-probabilities as the OpenAI API does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stillhouse.models import TokenLogprob
from stillhouse.serve.context import ServerContext
from stillhouse.serve.engines.base import Engine

LOWEST_LOGPROB = -9999.0  # JSON has no infinity; the OpenAI API uses the same number


class LogprobFormatter:
    """Formats the log-probabilities of one tokenizer's tokens."""

    def __init__(self, tokenizer: Any) -> None:
        from stillhouse.models import token_bytes

        self._bytes = token_bytes(tokenizer)

    def for_chat(self, token: TokenLogprob) -> dict[str, Any]:
        """Returns one entry of a chat completion's `logprobs.content`."""
        return self._entry(token.id, token.logprob) | {
            "top_logprobs": [self._entry(top_id, logprob) for top_id, logprob in token.top]
        }

    def for_completion(
        self, tokens: Sequence[TokenLogprob | None], ids: Sequence[int], text_offset: int
    ) -> dict[str, Any]:
        """Returns a completion's `logprobs`. The first token of a prompt has no log-probability (None).

        Args:
            ids: the ids of ``tokens``, of the first one too.
            text_offset: characters before the first of them.
        """
        offsets = []
        for token_id in ids:
            offsets.append(text_offset)
            text_offset += len(self._text(token_id))
        return {
            "tokens": [self._text(token_id) for token_id in ids],
            "token_logprobs": [token and max(token.logprob, LOWEST_LOGPROB) for token in tokens],
            "top_logprobs": [
                token and {self._text(top_id): logprob for top_id, logprob in token.top} for token in tokens
            ],
            "text_offset": offsets,
        }

    def _entry(self, token_id: int, logprob: float) -> dict[str, Any]:
        raw = self._raw(token_id)
        return {
            # A token may be part of a character: then only `bytes` tells which part.
            "token": raw.decode("utf-8", errors="replace"),
            "logprob": max(logprob, LOWEST_LOGPROB),
            "bytes": list(raw),
        }

    def _text(self, token_id: int) -> str:
        return self._raw(token_id).decode("utf-8", errors="replace")

    def _raw(self, token_id: int) -> bytes:
        # Models pad their vocabulary: ids beyond the tokenizer's have no text.
        return (self._bytes[token_id] if token_id < len(self._bytes) else None) or b""


def logprob_formatter(context: ServerContext, engine: Engine) -> LogprobFormatter:
    """Returns the formatter of an engine's log-probabilities; made once, as it reads the vocabulary."""
    if engine.prompts not in context.per_tokenizer:
        context.per_tokenizer[engine.prompts] = LogprobFormatter(engine.prompts.tokenizer)
    return context.per_tokenizer[engine.prompts]
