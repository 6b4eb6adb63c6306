"""Builds chat completions and completions from text deltas, whole and streamed."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from stillhouse.models import ReasoningStream, TokenLogprob
from stillhouse.serve.engines.base import TextDelta
from stillhouse.serve.tool_parser import ParsedCall, ToolCallParser

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


class TokenUsage:
    """Counts the tokens of all choices of one request."""

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt_tokens, self.completion_tokens, self.cached_tokens = prompt_tokens, 0, 0

    def add(self, delta: TextDelta) -> None:
        """Counts one delta."""
        self.completion_tokens += delta.tokens
        self.cached_tokens += delta.cached_tokens

    def to_json(self) -> dict[str, Any]:
        """Returns the API's `usage` object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens},
        }


class Envelope:
    """The fields that all chunks of one answer share: id, object, created, model."""

    def __init__(self, object_type: str, model: str) -> None:
        prefix = "chatcmpl-" if object_type.startswith("chat") else "cmpl-"
        self.fields = {
            "id": prefix + secrets.token_hex(12),
            "object": object_type,
            "created": int(time.time()),
            "model": model,
        }

    def wrap(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """Returns the object around some choices."""
        return {**self.fields, "choices": choices, **more}


class ChatChoice:
    """One choice of a chat completion, built delta by delta.

    Args:
        starts_in_reasoning: whether the prompt ends with `<think>`.
        logprob_formatter: None if log-probabilities were not requested.
        tool_parser: finds tool calls in the answer; None if it can have none.
    """

    def __init__(
        self,
        index: int,
        *,
        starts_in_reasoning: bool,
        logprob_formatter: LogprobFormatter | None,
        tool_parser: ToolCallParser | None = None,
    ) -> None:
        self.index = index
        self._reasoning = ReasoningStream(inside=starts_in_reasoning)
        self._formatter = logprob_formatter
        self._tool_parser = tool_parser
        self._tool_calls: list[dict[str, Any]] = []
        self._text = {"content": "", "reasoning": ""}
        self._logprobs: list[dict[str, Any]] = []
        self.finish_reason: str | None = None

    def opening(self) -> dict[str, Any]:
        """Returns the first chunk, which holds the role."""
        return self._chunk({"role": "assistant", "content": ""})

    def add(self, delta: TextDelta) -> list[dict[str, Any]]:
        """Returns the chunks of a delta; none while its text may still become part of a mark."""
        is_last = delta.finish_reason is not None
        chunks = []
        for kind, text in self._reasoning.add(delta.text, end=is_last):
            if kind == "content" and self._tool_parser:
                chunks += self._content_chunks(self._tool_parser.add(text))
            else:
                self._text[kind] += text
                chunks.append(self._chunk({"reasoning_content" if kind == "reasoning" else kind: text}))
        if is_last and self._tool_parser:
            chunks += self._content_chunks(self._tool_parser.add("", end=True))
        # Cut off by `length` after a call, the answer may miss further calls: the client must see that.
        ends_with_calls = self._tool_calls and delta.finish_reason == "stop"
        self.finish_reason = "tool_calls" if ends_with_calls else delta.finish_reason
        logprobs = [self._formatter.for_chat(token) for token in delta.logprobs] if self._formatter else []
        self._logprobs += logprobs
        if logprobs and not chunks:
            chunks.append(self._chunk({}))
        if logprobs:
            chunks[0]["logprobs"] = {"content": logprobs}
        if self.finish_reason:
            chunks.append(self._chunk({}) | {"finish_reason": self.finish_reason})
        return chunks

    def _content_chunks(self, parts: Sequence[str | ParsedCall]) -> list[dict[str, Any]]:
        """Returns one chunk for each text, and two for each tool call: its name, then its arguments."""
        chunks = []
        for part in parts:
            if isinstance(part, str):
                self._text["content"] += part
                chunks.append(self._chunk({"content": part}))
                continue
            index, arguments = len(self._tool_calls), {"arguments": part.arguments}
            head = {"id": part.id, "type": "function"}
            self._tool_calls.append({**head, "function": {"name": part.name, **arguments}})
            named = {"index": index, **head, "function": {"name": part.name, "arguments": ""}}
            chunks.append(self._chunk({"tool_calls": [named]}))
            chunks.append(self._chunk({"tool_calls": [{"index": index, "function": arguments}]}))
        return chunks

    def whole(self) -> dict[str, Any]:
        """Returns the finished choice."""
        message: dict[str, Any] = {"role": "assistant", "content": self._text["content"]}
        if self._text["reasoning"]:
            message["reasoning_content"] = self._text["reasoning"]
        if self._tool_calls:
            message["content"] = message["content"] or None
            message["tool_calls"] = self._tool_calls
        return {
            "index": self.index,
            "message": message,
            "logprobs": {"content": self._logprobs} if self._formatter else None,
            "finish_reason": self.finish_reason,
        }

    def _chunk(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": self.index, "delta": delta, "logprobs": None, "finish_reason": None}


class CompletionChoice:
    """One choice of a completion, built delta by delta.

    Args:
        logprob_formatter: None if log-probabilities were not requested.
        echo: ids and text of the prompt, which precede the answer.
        prompt_only: the answer itself is left out (`max_tokens` 0 with `echo`).
    """

    def __init__(
        self,
        index: int,
        *,
        logprob_formatter: LogprobFormatter | None,
        echo: tuple[Sequence[int], str] | None,
        prompt_only: bool,
    ) -> None:
        self.index, self._formatter, self._prompt_only = index, logprob_formatter, prompt_only
        self._text = ""
        self._prompt_ids, self._prompt_text = echo or ((), "")
        self._tokens: list[TokenLogprob | None] = []
        self._ids: list[int] = []
        self.finish_reason: str | None = None
        self._is_first = True

    def add(self, delta: TextDelta) -> list[dict[str, Any]]:
        """Returns the chunks of a delta."""
        text, tokens, text_offset = "", list[TokenLogprob | None](), len(self._text)
        if self._is_first and self._prompt_ids:
            text, tokens = self._prompt_text, [None, *delta.prompt_logprobs]
        self._is_first = False
        if not self._prompt_only:
            text += delta.text
            tokens += delta.logprobs
        ids = self._prompt_ids[:1] if tokens[:1] == [None] else ()
        ids = [*ids, *(token.id for token in tokens if token)]
        self._text += text
        self._tokens += tokens
        self._ids += ids
        self.finish_reason = "length" if self._prompt_only and delta.finish_reason else delta.finish_reason
        if not (text or tokens or delta.finish_reason):
            return []
        logprobs = None
        if self._formatter and tokens:
            logprobs = self._formatter.for_completion(tokens, ids, text_offset)
        return [self._choice(text, logprobs)]

    def whole(self) -> dict[str, Any]:
        """Returns the finished choice."""
        logprobs = self._formatter.for_completion(self._tokens, self._ids, 0) if self._formatter else None
        return self._choice(self._text, logprobs)

    def _choice(self, text: str, logprobs: Any) -> dict[str, Any]:
        return {
            "index": self.index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": self.finish_reason,
        }
