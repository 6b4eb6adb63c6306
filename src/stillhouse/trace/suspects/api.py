"""A suspect behind an OpenAI-compatible API.

Log-probabilities of a given text come from `POST /completions` with `echo`, which `still serve` answers, as
some others do; an API without it can only continue texts. There is no chat template on that route: a prompt
is written out plainly (`User:` … `Assistant:`). The tokenizer is unknown, so the prompt alone is asked too,
and as many tokens as it has are taken off the front.

Every answer is in the journal before the next is looked at. An answer that was journalled is never asked for
again, and its tokens count towards the budget. What the budget no longer allows is not asked: texts that are
scored together are asked all or not at all, answers one by one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from stillhouse.console import console
from stillhouse.errors import ApiError, CorpusError, ModelError, ModelNotFoundError, StillhouseError
from stillhouse.hashing import sha256_json
from stillhouse.journal import Journal, read_journal
from stillhouse.models import ChatTemplate, Message, Reply, Request, Sampling, parse_reference
from stillhouse.models.backends.concurrency import AdaptiveConcurrency
from stillhouse.models.backends.openai_api import ApiModel, open_api
from stillhouse.trace.suspects.base import Prompt, SuspectCapabilities, TextLikelihood

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


class _ApiQuery(NamedTuple):
    """What is to be asked."""

    text: str
    call: Callable[[str], Coroutine[Any, Any, Answer | StillhouseError]]
    answer: int = 0
    """Tokens that the answer may have."""


class ApiSuspect:
    """A model that somebody serves."""

    parameters: int | None = None

    def __init__(
        self, model: ApiModel, journal: Path | None, *, max_tokens: int | None, concurrency: int = CONCURRENCY
    ) -> None:
        self.reference, self.fingerprint = model.reference, model.fingerprint
        self.max_tokens, self.tokens = max_tokens, 0
        self._model = model
        self._concurrency = AdaptiveConcurrency(concurrency)
        self._pushbacks, self._failed_in_a_row = model.pushbacks, 0
        self._answers: dict[str, Answer] = {}
        self._refused: dict[str, StillhouseError] = {}
        """Why there is no answer, of what was asked in this process."""
        self._read, self._bytes, self._expected, self._said_so = 0, 0, 0.0, False
        self._template: float | None = None
        """Tokens that the server puts around a conversation; None until an answer told."""
        self._plain = ChatTemplate.plain()
        self._journal = None if journal is None else self._opened(journal)
        self._loop = asyncio.new_event_loop()
        try:
            self.completes, echoes = self._probed()
        except BaseException:
            self.close()
            raise
        self.can = SuspectCapabilities(generate=True, logprobs=echoes, weights=False)

    def loglik(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[TextLikelihood | None]:
        """The log-likelihood of each text after its prompt, written out plainly."""
        before = [self._written_out(prompt) for prompt in prompts]
        whole = [start + text for start, text in zip(before, texts, strict=True)]
        jobs = {_key("echo", text): _ApiQuery(text, self._echo) for text in [*before, *whole] if text}
        if not self.affords([job.text for key, job in jobs.items() if key not in self._answers]):
            self._exhausted()
            return [None] * len(texts)
        self._ask(jobs)
        scored: list[TextLikelihood | None] = []
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
            jobs[key] = _ApiQuery(beginning, self._continuing(prompt, beginning, length))
        self._ask(jobs)
        return [self._answers.get(key, {}).get("said") for key in keys]

    def generate(self, requests: Sequence[Request]) -> list[Reply | StillhouseError]:
        """Answers, one for each request, in order; an error where the budget does not allow one."""
        keys, jobs = [], {}
        for request in requests:
            key = _key("answer", [request.id, list(request.messages), asdict(request.sampling)])
            text = "".join(str(turn.get("content") or "") for turn in request.messages)
            keys.append(key)
            jobs[key] = _ApiQuery(text, self._answering(request), request.sampling.max_tokens)
        self._ask(jobs)
        return [
            Reply(**self._answers[key]["reply"]) if key in self._answers else self._refused[key]
            for key in keys
        ]

    def affords(self, texts: Sequence[str]) -> bool:
        """Whether the budget holds for these texts, if they cost as many tokens a byte as those before."""
        return self._allows(sum(self._cost(text) for text in texts))

    def close(self) -> None:
        """Closes connections and journal."""
        self._loop.run_until_complete(self._model.close())
        self._loop.close()
        if self._journal is not None:
            self._journal.close()

    def _allows(self, cost: float) -> bool:
        return self.max_tokens is None or self.tokens + self._expected + cost <= self.max_tokens

    def _cost(self, text: str) -> float:
        """Tokens that a text is taken to have, by those that were read before."""
        return len(text.encode()) * (self._read / self._bytes if self._bytes else TOKENS_PER_BYTE)

    def _cost_of_answer(self, job: _ApiQuery) -> float:
        return TOKENS_PER_BYTE * len(job.text.encode()) + (self._template or 0) + job.answer

    def _limit(self, job: _ApiQuery) -> int:
        """How many may be under way: the first answer alone, where a budget has to know what one costs."""
        unknown = job.answer and self.max_tokens is not None and self._template is None
        return 1 if unknown else self._concurrency.limit

    def _exhausted(self) -> ModelError:
        error = ModelError(f"{self.reference}: the budget of {self.max_tokens:,} tokens allows no more")
        if not self._said_so:
            console.warn(str(error))
        self._said_so = True
        return error

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
        if "reply" in line:
            around = line["reply"]["prompt_tokens"] - TOKENS_PER_BYTE * line["bytes"]
            self._template = max(self._template or 0.0, around)
        else:
            self._read += line["tokens"]
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

    def _answering(self, request: Request) -> Callable[[str], Coroutine[Any, Any, Answer | StillhouseError]]:
        async def answered(_: str) -> Answer | StillhouseError:
            [reply] = await self._model.generate([request])
            if isinstance(reply, StillhouseError):
                return reply
            return {"reply": asdict(reply), "tokens": reply.prompt_tokens + reply.completion_tokens}

        return answered

    def _ask(self, jobs: dict[str, _ApiQuery]) -> None:
        """Asks what is not answered yet; a text that is refused stays unanswered.

        Raises:
            ApiError: :data:`FAILURES_IN_A_ROW` requests failed one after another.
            AuthenticationError: the key was refused.
        """
        self._loop.run_until_complete(
            self._ask_all(deque((key, job) for key, job in jobs.items() if key not in self._answers))
        )

    async def _ask_all(self, waiting: deque[tuple[str, _ApiQuery]]) -> None:
        under_way: dict[asyncio.Task[Any], tuple[str, str, float]] = {}
        try:
            while waiting or under_way:
                while waiting and len(under_way) < self._limit(waiting[0][1]):
                    key, job = waiting.popleft()
                    cost = self._cost_of_answer(job) if job.answer else self._cost(job.text)
                    if job.answer and not self._allows(cost):
                        self._refused[key] = self._exhausted()
                        continue
                    self._expected += cost
                    under_way[asyncio.ensure_future(job.call(job.text))] = (key, job.text, cost)
                if not under_way:
                    break
                done, _ = await asyncio.wait(under_way, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    key, text, cost = under_way.pop(task)
                    self._expected -= cost
                    self._take(key, text, task.result(), len(under_way))
        finally:
            self._expected = 0.0
            for task in under_way:
                task.cancel()
            await asyncio.gather(*under_way, return_exceptions=True)

    def _take(self, key: str, text: str, result: Answer | StillhouseError, under_way: int) -> None:
        pushed_back = self._model.pushbacks > self._pushbacks
        self._pushbacks = self._model.pushbacks
        failed = isinstance(result, ApiError)
        self._concurrency.call_ended(overloaded=pushed_back or failed, in_flight=under_way)
        self._failed_in_a_row = self._failed_in_a_row + 1 if failed else 0
        if self._failed_in_a_row == FAILURES_IN_A_ROW:
            raise ApiError(
                f"{self.reference}: {FAILURES_IN_A_ROW} requests failed one after another; "
                f"the last: {result}",
                hint="What was answered is kept; run the same command again when the server is well.",
            )
        if isinstance(result, StillhouseError):
            self._refused[key] = result
        else:
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


def _scored(logps: Sequence[float | None]) -> TextLikelihood | None:
    """None where a log-probability is missing, or no token is left."""
    if not logps or any(value is None for value in logps):
        return None
    values = np.array(logps, np.float32)
    return TextLikelihood(len(values), float(values.sum(dtype=np.float64)), values)
