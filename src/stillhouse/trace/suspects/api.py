"""A suspect behind an OpenAI-compatible API.

Log-probabilities of a given text come from `POST /completions` with `echo`, which `still serve` and some
other servers support; an API without it can only continue texts. That route has no chat template, so a prompt
is written as plain text (`User:` … `Assistant:`). The tokenizer is unknown: the prompt alone is scored too,
and as many tokens as it has are removed from the front.

Every answer is appended to the journal before the next one is processed. A recorded answer is never requested
again, and its tokens count towards the budget. Beyond the budget nothing is requested: texts that are scored
together are requested all or not at all, answers one by one.
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
from stillhouse.trace.suspects.budget import TokenBudget

CONCURRENCY = 32
TIMEOUT_S = 120.0
RETRIES = 6
FAILURES_IN_A_ROW = 20
"""Consecutive failed requests (each after its retries) that stop the run."""
PROBE = "The still takes a spirit apart."
CONTINUE_PROMPT = (
    "Go on with the following text where it stops, word for word as you know it. Write nothing else.\n\n"
)

Answer = dict[str, Any]


class _ApiQuery(NamedTuple):
    """One request to make."""

    text: str
    call: Callable[[str], Coroutine[Any, Any, Answer | StillhouseError]]
    max_answer: int = 0
    """Most tokens of the answer; 0 for a text that is only scored or continued."""


class ApiSuspect:
    """A suspect that a server offers over HTTP.

    Args:
        journal: file that keeps the answers; None keeps nothing.
        max_tokens: budget of tokens in all; None is no limit.
        concurrency: most requests in flight.
    """

    parameters: int | None = None

    def __init__(
        self, model: ApiModel, journal: Path | None, *, max_tokens: int | None, concurrency: int = CONCURRENCY
    ) -> None:
        self.reference, self.fingerprint = model.reference, model.fingerprint
        self._model = model
        self._budget, self._warned_of_budget = TokenBudget(max_tokens), False
        self._concurrency = AdaptiveConcurrency(concurrency)
        self._pushbacks, self._failed_in_a_row = model.pushbacks, 0
        self._answers: dict[str, Answer] = {}
        self._errors: dict[str, StillhouseError] = {}
        """Why a query of this process has no answer."""
        self._plain_template = ChatTemplate.plain()
        self._journal = None if journal is None else self._open_journal(journal)
        self._loop = asyncio.new_event_loop()
        try:
            self.completes, echoes = self._probe()
        except BaseException:
            self.close()
            raise
        self.can = SuspectCapabilities(generate=True, logprobs=echoes, weights=False)

    @property
    def tokens(self) -> int:
        """Tokens that the API counted so far, recorded answers included."""
        return self._budget.spent

    def loglik(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[TextLikelihood | None]:
        """The log-likelihood of each text after its prompt in plain text."""
        starts = [self._plain_text(prompt) for prompt in prompts]
        wholes = [start + text for start, text in zip(starts, texts, strict=True)]
        queries = {_key("echo", text): _ApiQuery(text, self._echo) for text in [*starts, *wholes] if text}
        if not self.affords([query.text for key, query in queries.items() if key not in self._answers]):
            self._budget_error()
            return [None] * len(texts)
        self._request(queries)
        scored: list[TextLikelihood | None] = []
        for start, whole in zip(starts, wholes, strict=True):
            prompt_logps = self._answers.get(_key("echo", start), {}).get("logps") if start else []
            logps = self._answers.get(_key("echo", whole), {}).get("logps")
            if logps is None or prompt_logps is None:
                scored.append(None)
            else:
                # The first token of a text follows nothing; some servers give it a null.
                unscored = 1 if logps[:1] == [None] else 0
                scored.append(_likelihood(logps[max(len(prompt_logps), unscored) :]))
        return scored

    def continuations(
        self, prompts: Sequence[Prompt], beginnings: Sequence[str], lengths: Sequence[int]
    ) -> list[str | None]:
        """Greedy continuations; through the chat if the API does not continue texts."""
        keys, queries = [], {}
        for prompt, beginning, length in zip(prompts, beginnings, lengths, strict=True):
            key = _key("continue", [list(prompt), beginning, length])
            keys.append(key)
            queries[key] = _ApiQuery(beginning, self._continuation(prompt, beginning, length))
        self._request(queries)
        return [self._answers.get(key, {}).get("said") for key in keys]

    def generate(self, requests: Sequence[Request]) -> list[Reply | StillhouseError]:
        """Answers, one for each request, in order; an error if the budget does not allow one."""
        keys, queries = [], {}
        for request in requests:
            key = _key("answer", [request.id, list(request.messages), asdict(request.sampling)])
            text = "".join(str(turn.get("content") or "") for turn in request.messages)
            keys.append(key)
            queries[key] = _ApiQuery(text, self._answer(request), request.sampling.max_tokens)
        self._request(queries)
        return [
            Reply(**self._answers[key]["reply"]) if key in self._answers else self._errors[key]
            for key in keys
        ]

    def affords(self, texts: Sequence[str]) -> bool:
        """Whether the budget suffices for these texts."""
        return self._budget.allows(sum(map(self._budget.text_cost, texts)))

    def close(self) -> None:
        """Closes connections and journal."""
        self._loop.run_until_complete(self._model.close())
        self._loop.close()
        if self._journal is not None:
            self._journal.close()

    def _budget_error(self) -> ModelError:
        error = ModelError(f"{self.reference}: the budget of {self._budget.limit:,} tokens allows no more")
        if not self._warned_of_budget:
            console.warn(str(error))
        self._warned_of_budget = True
        return error

    def _plain_text(self, prompt: Prompt) -> str:
        return self._plain_template.render(list(prompt), add_generation_prompt=True) if prompt else ""

    def _open_journal(self, path: Path) -> Journal:
        """Opens the journal and takes over its answers."""
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
            self._record(line)
        return journal

    def _record(self, line: Answer) -> None:
        self._answers[line["key"]] = line
        self._budget.record(line)

    def _probe(self) -> tuple[bool, bool]:
        """Whether the API continues texts, and whether it returns log-probabilities of given texts."""
        try:
            completion = self._loop.run_until_complete(self._model.complete(PROBE, Sampling(), echo=True))
        except ModelNotFoundError:
            return False, False
        if isinstance(completion, ApiError):
            raise completion
        if isinstance(completion, StillhouseError):
            return True, False
        return True, bool(completion.logps) and completion.text.strip().endswith(PROBE[-8:])

    async def _echo(self, text: str) -> Answer | StillhouseError:
        completion = await self._model.complete(text, Sampling(), echo=True)
        if isinstance(completion, StillhouseError):
            return completion
        if completion.logps is None:
            return ModelError(f"{self.reference} returns no log-probabilities of a given text")
        return {"logps": completion.logps, "tokens": completion.tokens}

    def _continuation(
        self, prompt: Prompt, beginning: str, length: int
    ) -> Callable[[str], Coroutine[Any, Any, Answer | StillhouseError]]:
        sampling = Sampling(temperature=0.0, max_tokens=max(1, length))

        async def complete(_: str) -> Answer | StillhouseError:
            completion = await self._model.complete(self._plain_text(prompt) + beginning, sampling)
            if isinstance(completion, StillhouseError):
                return completion
            return {"said": completion.text, "tokens": completion.tokens}

        async def chat(_: str) -> Answer | StillhouseError:
            messages: list[Message] = [*prompt, {"role": "user", "content": CONTINUE_PROMPT + beginning}]
            [reply] = await self._model.generate([Request("continuation", messages, sampling)])
            if isinstance(reply, StillhouseError):
                return reply
            return {"said": reply.text, "tokens": reply.prompt_tokens + reply.completion_tokens}

        return complete if self.completes else chat

    def _answer(self, request: Request) -> Callable[[str], Coroutine[Any, Any, Answer | StillhouseError]]:
        async def generate(_: str) -> Answer | StillhouseError:
            [reply] = await self._model.generate([request])
            if isinstance(reply, StillhouseError):
                return reply
            return {"reply": asdict(reply), "tokens": reply.prompt_tokens + reply.completion_tokens}

        return generate

    def _request(self, queries: dict[str, _ApiQuery]) -> None:
        """Makes all requests without a recorded answer; a query that is refused stays unanswered.

        Raises:
            ApiError: :data:`FAILURES_IN_A_ROW` requests failed one after another.
            AuthenticationError: the key was refused.
        """
        waiting = deque((key, query) for key, query in queries.items() if key not in self._answers)
        self._loop.run_until_complete(self._request_all(waiting))

    async def _request_all(self, waiting: deque[tuple[str, _ApiQuery]]) -> None:
        in_flight: dict[asyncio.Task[Any], tuple[str, str, float]] = {}
        try:
            while waiting or in_flight:
                while waiting and len(in_flight) < self._limit(waiting[0][1]):
                    key, query = waiting.popleft()
                    cost = self._cost(query)
                    if query.max_answer and not self._budget.allows(cost):
                        self._errors[key] = self._budget_error()
                        continue
                    self._budget.reserve(cost)
                    in_flight[asyncio.ensure_future(query.call(query.text))] = (key, query.text, cost)
                if not in_flight:
                    break
                done, _ = await asyncio.wait(in_flight, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    key, text, cost = in_flight.pop(task)
                    self._budget.release(cost)
                    self._process(key, text, task.result(), len(in_flight))
        finally:
            self._budget.release()
            for task in in_flight:
                task.cancel()
            await asyncio.gather(*in_flight, return_exceptions=True)

    def _limit(self, query: _ApiQuery) -> int:
        """Most requests in flight. With a budget the first answer is alone: it shows what one costs."""
        return 1 if query.max_answer and self._budget.must_measure_answers else self._concurrency.limit

    def _cost(self, query: _ApiQuery) -> float:
        if query.max_answer:
            return self._budget.answer_cost(query.text, query.max_answer)
        return self._budget.text_cost(query.text)

    def _process(self, key: str, text: str, result: Answer | StillhouseError, in_flight: int) -> None:
        """Records a result, or counts a failure."""
        pushed_back = self._model.pushbacks > self._pushbacks
        self._pushbacks = self._model.pushbacks
        failed = isinstance(result, ApiError)
        self._concurrency.call_ended(overloaded=pushed_back or failed, in_flight=in_flight)
        self._failed_in_a_row = self._failed_in_a_row + 1 if failed else 0
        if self._failed_in_a_row == FAILURES_IN_A_ROW:
            raise ApiError(
                f"{self.reference}: {FAILURES_IN_A_ROW} requests failed one after another; "
                f"the last: {result}",
                hint="The answers so far are kept; run the same command again when the server answers.",
            )
        if isinstance(result, StillhouseError):
            self._errors[key] = result
        else:
            line = {"key": key, "bytes": len(text.encode()), **result}
            if self._journal is not None:
                self._journal.append(line)
            self._record(line)


def open_api_suspect(
    reference: str, journal: Path | None, *, max_tokens: int | None, api_key_env: str, seed: int
) -> ApiSuspect:
    """Opens the suspect at ``reference``; one short request shows what the API supports."""
    parsed = parse_reference(reference)
    model = open_api(parsed, api_key_env=api_key_env, timeout_s=TIMEOUT_S, retries=RETRIES, seed=seed)
    return ApiSuspect(model, journal, max_tokens=max_tokens)


def _key(kind: str, query: Any) -> str:
    return sha256_json([kind, query])


def _likelihood(logps: Sequence[float | None]) -> TextLikelihood | None:
    """None if a log-probability is missing, or no token is left."""
    if not logps or any(value is None for value in logps):
        return None
    values = np.array(logps, np.float32)
    return TextLikelihood(len(values), float(values.sum(dtype=np.float64)), values)
