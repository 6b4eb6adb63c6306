"""A suspect behind an OpenAI-compatible API.

Log-probabilities of a given text come from `POST /completions` with `echo`, which `still serve` answers, as
some others do; an API without it can only continue texts. There is no chat template on that route: a prompt
is written out plainly (`User:` … `Assistant:`). The tokenizer is unknown, so the prompt alone is asked too,
and as many tokens as it has are taken off the front.

Every answer is in the journal before the next is looked at. An answer that was journalled is never asked for
again, and its tokens count towards the budget.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..corpus.journal import Journal, read_journal
from ..corpus.pace import Pace
from ..errors import ApiError, CorpusError, ModelError, ModelNotFoundError, StillhouseError
from ..hashing import sha256_json
from ..models import ChatTemplate, Message, Reply, Request, Sampling, parse_reference
from ..models.api_backend import ApiModel, open_api
from .suspect import Can, Prompt, Scored

CONCURRENCY = 32
TIMEOUT_S = 120.0
RETRIES = 6
FAILURES_IN_A_ROW = 20
"""Requests that fail one after another (each after its retries) before asking stops."""
TOKENS_PER_BYTE = 0.5
"""What a text is taken to cost while nothing is known: twice what English needs."""
PROBE = "The still takes a spirit apart."
GO_ON = "Go on with the following text where it stops, word for word as you know it. Write nothing else.\n\n"

Answer = dict[str, Any]


class ApiSuspect:
    """A model that somebody serves."""

    def __init__(
        self, model: ApiModel, journal: Path | None, *, max_tokens: int | None, concurrency: int = CONCURRENCY
    ) -> None:
        self.reference, self.fingerprint = model.reference, model.fingerprint
        self.max_tokens, self.tokens = max_tokens, 0
        self._model = model
        self._pace, self._pushbacks, self._failed_in_a_row = Pace(concurrency), model.pushbacks, 0
        self._answers: dict[str, Answer] = {}
        self._bytes = 0
        self._plain = ChatTemplate.plain()
        self._journal = None if journal is None else self._opened(journal)
        self._loop = asyncio.new_event_loop()
        try:
            self.completes, echoes = self._probed()
        except BaseException:
            self.close()
            raise
        self.can = Can(generate=True, logprobs=echoes, weights=False)

    def loglik(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[Scored | None]:
        """The log-likelihood of each text after its prompt, written out plainly."""
        before = [self._written_out(prompt) for prompt in prompts]
        whole = [start + text for start, text in zip(before, texts, strict=True)]
        self._ask({_key("echo", text): (text, self._echo) for text in [*before, *whole] if text})
        scored: list[Scored | None] = []
        for start, text in zip(before, whole, strict=True):
            prompt_logps = self._answers.get(_key("echo", start), {}).get("logps") if start else []
            logps = self._answers.get(_key("echo", text), {}).get("logps")
            if logps is None or prompt_logps is None:
                scored.append(None)
            else:
                scored.append(_scored(logps[max(len(prompt_logps), 1 if logps[:1] == [None] else 0) :]))
        return scored

    def continuations(
        self, prompts: Sequence[Prompt], beginnings: Sequence[str], lengths: Sequence[int]
    ) -> list[str | None]:
        """How it goes on; through the chat where the API continues no text."""
        keys, jobs = [], {}
        for prompt, beginning, length in zip(prompts, beginnings, lengths, strict=True):
            key = _key("continue", [list(prompt), beginning, length])
            keys.append(key)
            jobs[key] = (beginning, self._continuing(prompt, beginning, length))
        self._ask(jobs)
        return [self._answers.get(key, {}).get("said") for key in keys]

    def generate(self, requests: Sequence[Request]) -> list[Reply | StillhouseError]:
        """Answers, one for each request, in order."""
        return self._loop.run_until_complete(self._model.generate(requests))

    def affords(self, texts: Sequence[str]) -> bool:
        """Whether the budget holds for these texts, if they cost as many tokens a byte as those before."""
        if self.max_tokens is None:
            return True
        rate = self.tokens / self._bytes if self._bytes else TOKENS_PER_BYTE
        return self.tokens + rate * sum(len(text.encode()) for text in texts) <= self.max_tokens

    def close(self) -> None:
        """Closes connections and journal."""
        self._loop.run_until_complete(self._model.close())
        self._loop.close()
        if self._journal is not None:
            self._journal.close()

    def _written_out(self, prompt: Prompt) -> str:
        return self._plain.render(list(prompt), add_generation_prompt=True) if prompt else ""

    def _opened(self, path: Path) -> Journal:
        """The journal, with what is in it taken for answered."""
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = list(read_journal(path))
        if lines and lines[0] != {"suspect": self.fingerprint}:
            raise CorpusError(
                f"{path} holds the answers of another model than {self.reference}",
                hint="Name another file, or move this one away.",
            )
        journal = Journal(path)
        if not lines:
            journal.append({"suspect": self.fingerprint})
        for line in lines[1:]:
            self._remember(line)
        return journal

    def _remember(self, line: Answer) -> None:
        self._answers[line["key"]] = line
        self.tokens += line["tokens"]
        self._bytes += line["bytes"]

    def _probed(self) -> tuple[bool, bool]:
        """Whether the API continues texts, and tells the log-probabilities of given ones."""
        try:
            said = self._loop.run_until_complete(self._model.complete(PROBE, Sampling(), echo=True))
        except ModelNotFoundError:
            return False, False
        if isinstance(said, ApiError):
            raise said
        if isinstance(said, StillhouseError):
            return True, False
        return True, bool(said.logps) and said.text.strip().endswith(PROBE[-8:])

    async def _echo(self, text: str) -> Answer | StillhouseError:
        said = await self._model.complete(text, Sampling(), echo=True)
        if isinstance(said, StillhouseError):
            return said
        if said.logps is None:
            return ModelError(f"{self.reference} tells no log-probabilities of a given text")
        return {"logps": said.logps, "tokens": said.tokens}

    def _continuing(
        self, prompt: Prompt, beginning: str, length: int
    ) -> Callable[[str], Coroutine[Any, Any, Answer | StillhouseError]]:
        sampling = Sampling(temperature=0.0, max_tokens=max(1, length))

        async def completed(_: str) -> Answer | StillhouseError:
            said = await self._model.complete(self._written_out(prompt) + beginning, sampling)
            return said if isinstance(said, StillhouseError) else {"said": said.text, "tokens": said.tokens}

        async def chatted(_: str) -> Answer | StillhouseError:
            messages: list[Message] = [*prompt, {"role": "user", "content": GO_ON + beginning}]
            [reply] = await self._model.generate([Request("continuation", messages, sampling)])
            if isinstance(reply, StillhouseError):
                return reply
            return {"said": reply.text, "tokens": reply.prompt_tokens + reply.completion_tokens}

        return completed if self.completes else chatted

    def _ask(self, jobs: dict[str, tuple[str, Callable[[str], Coroutine[Any, Any, Any]]]]) -> None:
        """Asks what is not answered yet; a text that is refused stays unanswered.

        Raises:
            ApiError: :data:`FAILURES_IN_A_ROW` requests failed one after another.
            AuthenticationError: the key was refused.
        """
        self._loop.run_until_complete(
            self._ask_all(deque((key, *job) for key, job in jobs.items() if key not in self._answers))
        )

    async def _ask_all(self, waiting: deque[tuple[str, str, Any]]) -> None:
        under_way: dict[asyncio.Task[Any], tuple[str, str]] = {}
        try:
            while waiting or under_way:
                while waiting and len(under_way) < self._pace.limit:
                    key, text, call = waiting.popleft()
                    under_way[asyncio.ensure_future(call(text))] = (key, text)
                done, _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    self._take(*under_way.pop(task), task.result(), len(under_way))
        finally:
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    def _take(self, key: str, text: str, result: Answer | StillhouseError, under_way: int) -> None:
        pushed_back = self._model.pushbacks > self._pushbacks
        self._pushbacks = self._model.pushbacks
        failed = isinstance(result, ApiError)
        self._pace.ended(trouble=pushed_back or failed, under_way=under_way)
        self._failed_in_a_row = self._failed_in_a_row + 1 if failed else 0
        if self._failed_in_a_row == FAILURES_IN_A_ROW:
            raise ApiError(
                f"{self.reference}: {FAILURES_IN_A_ROW} requests failed one after another; "
                f"the last: {result}",
                hint="What was answered is kept; run the same command again when the server is well.",
            )
        if not isinstance(result, StillhouseError):
            line = {"key": key, "bytes": len(text.encode()), **result}
            if self._journal is not None:
                self._journal.append(line)
            self._remember(line)


def open_api_suspect(
    reference: str, journal: Path | None, *, max_tokens: int | None, api_key_env: str, seed: int
) -> ApiSuspect:
    """A client for ``reference``; asks one short text, to find out what the API tells."""
    parsed = parse_reference(reference)
    model = open_api(parsed, api_key_env=api_key_env, timeout_s=TIMEOUT_S, retries=RETRIES, seed=seed)
    return ApiSuspect(model, journal, max_tokens=max_tokens)


def _key(kind: str, asked: Any) -> str:
    return sha256_json([kind, asked])


def _scored(logps: Sequence[float | None]) -> Scored | None:
    """None where a log-probability is missing, or no token is left."""
    if not logps or any(value is None for value in logps):
        return None
    values = np.array(logps, np.float32)
    return Scored(len(values), float(values.sum(dtype=np.float64)), values)
