"""Pieces of answers in the OpenAI API's words: chat completions and completions, whole and streamed."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from typing import Any

from stillhouse.models import ReasoningStream, TokenLogprob
from stillhouse.serve.engine import Piece
from stillhouse.serve.tool_parser import Call, Calls


class TokenNames:
    """How the ids of one tokenizer are shown beside log-probabilities."""

    def __init__(self, tokenizer: Any) -> None:
        from stillhouse.models import token_bytes

        self._bytes = token_bytes(tokenizer)

    def text(self, token: int) -> str:
        """The token as text; part of a character becomes a replacement sign."""
        return self.raw(token).decode("utf-8", errors="replace")

    def raw(self, token: int) -> bytes:
        """The bytes that the token stands for."""
        return (self._bytes[token] if token < len(self._bytes) else None) or b""

    def chat(self, score: TokenLogprob) -> dict[str, Any]:
        """One item of a chat completion's `logprobs.content`."""
        return self._named(score.id, score.logprob) | {
            "top_logprobs": [self._named(token, logprob) for token, logprob in score.top]
        }

    def _named(self, token: int, logprob: float) -> dict[str, Any]:
        raw = self.raw(token)
        shown = raw.decode("utf-8", errors="replace")
        return {"token": shown, "logprob": max(logprob, -9999.0), "bytes": list(raw)}

    def completion(
        self, scores: Sequence[TokenLogprob | None], ids: Sequence[int], at: int
    ) -> dict[str, Any]:
        """A completion's `logprobs`; the first token of a prompt has none (None).

        Args:
            ids: the tokens, one for each score.
            at: characters before the first of them.
        """
        offsets = []
        for token in ids:
            offsets.append(at)
            at += len(self.text(token))
        return {
            "tokens": [self.text(token) for token in ids],
            "token_logprobs": [score and max(score.logprob, -9999.0) for score in scores],
            "top_logprobs": [
                score and {self.text(token): value for token, value in score.top} for score in scores
            ],
            "text_offset": offsets,
        }


class Tally:
    """Tokens of all choices of one request."""

    def __init__(self, prompt_tokens: int) -> None:
        self.prompt, self.completion, self.cached = prompt_tokens, 0, 0

    def count(self, piece: Piece) -> None:
        """Adds one piece."""
        self.completion += piece.tokens
        self.cached += piece.cached_tokens

    def usage(self) -> dict[str, Any]:
        """In the API's words."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
        }


class Envelope:
    """What all chunks of one answer have in common."""

    def __init__(self, kind: str, model: str) -> None:
        prefix = "chatcmpl-" if kind.startswith("chat") else "cmpl-"
        self.fields = {
            "id": prefix + secrets.token_hex(12),
            "object": kind,
            "created": int(time.time()),
            "model": model,
        }

    def around(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        """The whole object."""
        return {**self.fields, "choices": choices, **more}


class ChatChoice:
    """One choice of a chat completion, as it grows.

    Args:
        calls: what finds calls of tools in it; None where it may have none.
    """

    def __init__(
        self, index: int, *, inside: bool, names: TokenNames | None, calls: Calls | None = None
    ) -> None:
        self.index = index
        self._thoughts = ReasoningStream(inside=inside)
        self._names = names
        self._calls = calls
        self._called: list[dict[str, Any]] = []
        self._said = {"content": "", "reasoning": ""}
        self._scores: list[dict[str, Any]] = []
        self.finish_reason: str | None = None

    def opening(self) -> dict[str, Any]:
        """The first chunk: who speaks."""
        return self._chunk({"role": "assistant", "content": ""})

    def add(self, piece: Piece) -> list[dict[str, Any]]:
        """The chunks that ``piece`` becomes; none while it may yet be part of a mark."""
        end = piece.finish_reason is not None
        parts = self._thoughts.add(piece.text, end=end)
        scores = [self._names.chat(score) for score in piece.scores] if self._names else []
        self._scores += scores
        chunks = []
        for kind, text in parts:
            if kind == "content" and self._calls:
                chunks += self._told(self._calls.add(text))
            else:
                self._said[kind] += text
                chunks.append(self._chunk({"reasoning_content" if kind == "reasoning" else kind: text}))
        if end and self._calls:
            chunks += self._told(self._calls.add("", end=True))
        calls_end_it = self._called and piece.finish_reason == "stop"
        self.finish_reason = "tool_calls" if calls_end_it else piece.finish_reason
        if scores and not chunks:
            chunks.append(self._chunk({}))
        if scores:
            chunks[0]["logprobs"] = {"content": scores}
        if self.finish_reason:
            chunks.append(self._chunk({}) | {"finish_reason": self.finish_reason})
        return chunks

    def _told(self, parts: Sequence[str | Call]) -> list[dict[str, Any]]:
        """Chunks of text, and two of each call: which tool, and its arguments."""
        chunks = []
        for part in parts:
            if isinstance(part, str):
                self._said["content"] += part
                chunks.append(self._chunk({"content": part}))
                continue
            place, arguments = len(self._called), {"arguments": part.arguments}
            head = {"id": part.id, "type": "function"}
            self._called.append({**head, "function": {"name": part.name, **arguments}})
            named = {"index": place, **head, "function": {"name": part.name, "arguments": ""}}
            chunks.append(self._chunk({"tool_calls": [named]}))
            chunks.append(self._chunk({"tool_calls": [{"index": place, "function": arguments}]}))
        return chunks

    def whole(self) -> dict[str, Any]:
        """The finished choice."""
        message: dict[str, Any] = {"role": "assistant", "content": self._said["content"]}
        if self._said["reasoning"]:
            message["reasoning_content"] = self._said["reasoning"]
        if self._called:
            message["content"] = message["content"] or None
            message["tool_calls"] = self._called
        return {
            "index": self.index,
            "message": message,
            "logprobs": {"content": self._scores} if self._names else None,
            "finish_reason": self.finish_reason,
        }

    def _chunk(self, delta: dict[str, Any]) -> dict[str, Any]:
        return {"index": self.index, "delta": delta, "logprobs": None, "finish_reason": None}


class TextChoice:
    """One choice of a completion, as it grows.

    Args:
        echo: ids and text of the prompt, which then stand before the answer.
    """

    def __init__(
        self, index: int, *, names: TokenNames | None, echo: tuple[Sequence[int], str] | None, silent: bool
    ) -> None:
        self.index, self._names, self._silent = index, names, silent
        self._text = ""
        self._prompt_ids, self._prompt = echo or ((), "")
        self._scores: list[TokenLogprob | None] = []
        self._ids: list[int] = []
        self.finish_reason: str | None = None
        self._begun = False

    def add(self, piece: Piece) -> list[dict[str, Any]]:
        """The chunks that ``piece`` becomes."""
        text, scores, at = "", list[TokenLogprob | None](), len(self._text)
        if not self._begun and self._prompt_ids:
            text, scores = self._prompt, [None, *piece.prompt_scores]
        self._begun = True
        if not self._silent:
            text += piece.text
            scores += piece.scores
        ids = self._prompt_ids[:1] if scores[:1] == [None] else ()
        ids = [*ids, *(score.id for score in scores if score)]
        self._text += text
        self._scores += scores
        self._ids += ids
        self.finish_reason = "length" if self._silent and piece.finish_reason else piece.finish_reason
        if not (text or scores or piece.finish_reason):
            return []
        logprobs = self._names.completion(scores, ids, at) if self._names and scores else None
        return [self._choice(text, logprobs)]

    def whole(self) -> dict[str, Any]:
        """The finished choice."""
        logprobs = self._names.completion(self._scores, self._ids, 0) if self._names else None
        return self._choice(self._text, logprobs)

    def _choice(self, text: str, logprobs: Any) -> dict[str, Any]:
        return {
            "index": self.index,
            "text": text,
            "logprobs": logprobs,
            "finish_reason": self.finish_reason,
        }
