"""Collects a teacher's answers with as many parallel requests as it accepts, and stores each at once.

An answer is in the corpus's journal before the next event is handled: killing the process costs at most the
requests in flight, and a later run asks only for what is missing. The model (:mod:`stillhouse.models`) waits
and retries; a request that fails here has failed for good, or until the next run.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stillhouse.console import Progress, console
from stillhouse.corpus.collect.budget import Budget, Reserve
from stillhouse.corpus.collect.exchanges import (
    Exchange,
    answer_row,
    imported_row,
    plan_exchanges,
    question_row,
)
from stillhouse.corpus.collect.failures import Failures, describe_failures
from stillhouse.corpus.store.corpus import Corpus
from stillhouse.corpus.store.reconcile import reconcile
from stillhouse.errors import (
    ApiError,
    AuthenticationError,
    ContextLengthError,
    CreditError,
    EmptyCorpusError,
    ModelError,
    ParameterError,
    StillhouseError,
)
from stillhouse.models.backends.concurrency import AdaptiveConcurrency
from stillhouse.recipe import Collect, Teacher

if TYPE_CHECKING:
    from stillhouse.corpus.prompts.prompt import Prompt
    from stillhouse.models import Model, Reply

MOST_FAILURES = 20
"""Failed requests (each after its retries) that stop the collection: one after another, or of one kind where
so many requests have failed that the run cannot succeed."""
EMPTY_ANSWERS = 20
"""Empty answers that stop the collection, if no answer before them had text or thoughts."""


@dataclass(frozen=True)
class CollectSummary:
    """The result of a collection. Tokens and cost count all rows of the teacher, earlier runs included."""

    asked: int
    """Exchanges that the recipe asks for."""
    finished_before: int
    """Of those, the ones that were in the corpus (or had failed for good) when this run began."""
    collected: int
    """Answers that this run stored."""
    imported: int
    """Finished exchanges that this run took from the prompt file."""
    failed: dict[str, int]
    """Requests without an answer, by reason, also those that had failed for good in earlier runs."""
    failure_details: dict[str, str]
    """For each reason the last failure in the server's (or the model's) own words."""
    not_sent: dict[str, int]
    """Answers of this run by sampling setting that the API was not sent: not in the recipe, or refused."""
    set_aside: int
    """Rows of an earlier recipe that this one does not ask for, moved to ``set_aside/``."""
    prompt_tokens: int
    completion_tokens: int
    cost_usd: float | None
    """None if the recipe names no prices."""
    seconds: float
    lowest_concurrency: int
    """The smallest limit on calls in flight that the teacher's rate limiting led to."""
    stopped_by: str | None
    """The limit that ended the collection early (`max_cost`, `max_total_tokens`), or None."""


async def collect_answers(
    model: Model,
    prompts: Iterable[tuple[str, Prompt]],
    corpus: Corpus,
    settings: Collect,
    *,
    teacher: Teacher,
    terms: str,
    seed: int,
    other_prompts: Collection[str] = (),
) -> CollectSummary:
    """Asks ``model`` every (split, prompt) that ``corpus`` does not answer yet, and seals the corpus.

    Afterwards the corpus holds exactly the answers that these arguments ask for; rows of earlier recipes are
    in its ``set_aside/``. At most ``settings.concurrency`` requests are in flight; a model that batches gets
    as many in one call as it can take. Which requests share a call depends on the list of prompts, not on
    what was finished before.

    Args:
        other_prompts: ids of prompts that other teachers answer in the same corpus; their rows stay, and
            count towards the limits.

    Raises:
        AuthenticationError, CreditError: the key was refused, or the account has no credit; no further
            request is sent, and answers in flight are stored.
        ParameterError: the API refuses a parameter, and nothing was answered in this run.
        ApiError, ModelError: :data:`MOST_FAILURES` requests failed.
        EmptyCorpusError: the teacher answered no prompt, or every prompt with an empty text.
        StorageError: the disk is full; stored answers stay.
    """
    exchanges = plan_exchanges(prompts, model, settings, teacher, seed)
    started = time.monotonic()
    corpus.lock()
    try:
        set_aside = reconcile(corpus, {exchange.id: exchange.split for exchange in exchanges}, other_prompts)
        collection = _Collection(model, corpus, settings, teacher, terms, other_prompts)
        await collection.collect(exchanges)
    finally:
        corpus.seal()
    collection.require_an_answer()
    return CollectSummary(
        asked=len(exchanges),
        finished_before=collection.finished_before,
        collected=collection.collected,
        imported=collection.imported,
        failed=dict(collection.failed),
        failure_details=dict(collection.failure_details),
        not_sent=dict(collection.not_sent),
        set_aside=set_aside,
        prompt_tokens=collection.budget.prompt_tokens,
        completion_tokens=collection.budget.completion_tokens,
        cost_usd=collection.budget.spent_usd,
        seconds=round(time.monotonic() - started, 3),
        lowest_concurrency=collection.concurrency.lowest,
        stopped_by=collection.stopped_by,
    )


class _Collection:
    """The state of one collection."""

    def __init__(
        self,
        model: Model,
        corpus: Corpus,
        settings: Collect,
        teacher: Teacher,
        terms: str,
        other_prompts: Collection[str],
    ) -> None:
        self.model, self.corpus, self.terms, self.other_prompts = model, corpus, terms, other_prompts
        self.budget = Budget(settings, teacher)
        self.batch_size = min(model.max_batch, settings.concurrency)
        self.concurrency = AdaptiveConcurrency(
            min(model.concurrency, settings.concurrency // self.batch_size)
        )
        self.failures = Failures(corpus.directory)
        self.finished_before = self.collected = self.imported = 0
        self.failed: Counter[str] = Counter()
        self.failure_details: dict[str, str] = {}
        self.not_sent: Counter[str] = Counter()
        self._settings, self._teacher, self._asked = settings, teacher, 0
        self._warned_of_thoughts = False
        self.stopped_by: str | None = None
        self._stored = self._empty = self._failed_in_a_row = 0
        self._in_flight: set[asyncio.Task[None]] = set()
        self._pushbacks = model.pushbacks

    async def collect(self, exchanges: list[Exchange]) -> None:
        """Imports finished exchanges and asks for missing ones."""
        self._asked = len(exchanges)
        done = self._count_stored()
        failed = self.failures.final()
        for line in [failed[e.id] for e in exchanges if e.id in failed and e.id not in done]:
            self._count_failure(line["reason"], line["detail"])
            done.add(line["id"])
        for exchange in exchanges:
            if exchange.is_finished and exchange.id not in done:
                self.corpus.append(imported_row(exchange, self.terms))
                self.imported += 1
        self._stored += self.imported
        questions = [exchange for exchange in exchanges if not exchange.is_finished]
        self.finished_before = sum(exchange.id in done for exchange in exchanges)
        if all(exchange.id in done for exchange in questions):
            return
        with console.progress(
            "collect", len(questions), "answers", done=sum(e.id in done for e in questions)
        ) as progress:
            await self._ask(_batches(questions, self.batch_size, done), progress)

    def _count_stored(self) -> set[str]:
        """Ids of stored answers; counts their cost."""
        done: set[str] = set()
        columns = ["id", "prompt_id", "prompt_tokens", "completion_tokens", "cost_usd"]
        for row in self.corpus.rows(columns=columns):
            if row["prompt_id"] in self.other_prompts:
                self.budget.spend_by_other_teacher(row)
                continue
            done.add(row["id"])
            self.budget.spend(row)
            self._stored += 1
        return done

    async def _ask(self, batches: deque[list[Exchange]], progress: Progress) -> None:
        try:
            while batches and self.stopped_by is None:
                reserve = self.budget.estimate([exchange.request for exchange in batches[0]])
                limit = self.budget.exceeded_by(reserve)
                if len(self._in_flight) >= self.concurrency.limit or (limit and self._in_flight):
                    await self._wait_for_call()  # which also releases what it reserved beyond its real cost
                elif limit and len(batches[0]) > 1:
                    # The whole batch does not fit in the budget, but a part of it may.
                    batch = batches.popleft()
                    batches.extendleft([batch[len(batch) // 2 :], batch[: len(batch) // 2]])
                elif limit:
                    self.stopped_by = limit
                else:
                    self.budget.hold(reserve)
                    call = self._call(batches.popleft(), reserve, progress)
                    self._in_flight.add(asyncio.create_task(call))
            while self._in_flight:
                await self._wait_for_call()
        except (AuthenticationError, CreditError) as error:
            if self._in_flight:  # answers that are paid for
                await asyncio.wait(self._in_flight, timeout=self._settings.timeout_s)
            kept = f"{self._stored} of {self._asked} answered; " if self._stored else ""
            raise type(error)(f"{kept}{error}", hint=error.hint) from error
        finally:
            for task in self._in_flight:
                task.cancel()
            await asyncio.gather(*self._in_flight, return_exceptions=True)

    async def _wait_for_call(self) -> None:
        """Waits until a call ends; raises its exception."""
        done, self._in_flight = await asyncio.wait(self._in_flight, return_when=asyncio.FIRST_COMPLETED)
        for error in [task.exception() for task in done]:
            if error is not None:
                raise error

    async def _call(self, batch: list[Exchange], reserve: Reserve, progress: Progress) -> None:
        try:
            results = await self.model.generate([exchange.request for exchange in batch])
        finally:
            self.budget.release(reserve)
        for exchange, result in zip(batch, results, strict=True):
            if isinstance(result, StillhouseError):
                self._store_failure(exchange, result)
            else:
                self._store_answer(exchange, result)
        extras: dict[str, Any] = {"spent": self.budget.spent_usd} if self.budget.priced else {}
        extras |= {"failed": self.failed.total()} if self.failed else {}
        # Failures are no progress: a dead server must not end in a full bar.
        progress.advance(sum(not isinstance(result, StillhouseError) for result in results), **extras)
        pushed_back = self.model.pushbacks > self._pushbacks
        self._pushbacks = self.model.pushbacks
        failed = any(isinstance(result, ApiError) for result in results)
        self.concurrency.call_ended(overloaded=pushed_back or failed, in_flight=len(self._in_flight) - 1)

    def _store_answer(self, exchange: Exchange, reply: Reply) -> None:
        cost = self.budget.cost(reply.prompt_tokens, reply.completion_tokens)
        row = answer_row(question_row(exchange, self.model, self.terms), reply, cost)
        self.corpus.append(row)
        self.budget.spend(row)
        self.collected += 1
        self._stored += 1
        self._failed_in_a_row = 0
        self.not_sent.update(reply.not_sent)
        answer = row["messages"][-1]
        if answer.get("reasoning_content") and self._teacher.enable_thinking is False:
            self._warn_of_thoughts()
        self._empty += not (answer["content"].strip() or answer.get("reasoning_content"))
        if self._empty == EMPTY_ANSWERS:
            self.require_an_answer()

    def _warn_of_thoughts(self) -> None:
        if not self._warned_of_thoughts:
            console.warn(
                f"{self.model.reference} thinks although teacher.enable_thinking is false; if it ignores the "
                "option, set what its provider reads in teacher.extra_body"
            )
        self._warned_of_thoughts = True

    def _store_failure(self, exchange: Exchange, error: StillhouseError) -> None:
        refused_parameter = isinstance(error, ParameterError) and not self.collected
        if refused_parameter or isinstance(error, AuthenticationError | CreditError):
            raise error
        reason = self.failures.add(question_row(exchange, self.model, self.terms), error)
        self._count_failure(reason, str(error))
        # Prompts come by length, so that the longest, which may not fit a context, fail one after another.
        self._failed_in_a_row += not isinstance(error, ContextLengthError)
        beyond_hope = self.failed.total() > self._settings.tolerated_failures * self._asked
        if self._failed_in_a_row >= MOST_FAILURES or (self.failed[reason] >= MOST_FAILURES and beyond_hope):
            kind = ApiError if isinstance(error, ApiError) else ModelError
            raise kind(
                self.outcome(),
                hint=f"Each failure is recorded in {self.failures.path}. The answers so far are kept; run "
                "the same command again when the cause is gone.",
            ) from error

    def _count_failure(self, reason: str, detail: str) -> None:
        self.failed[reason] += 1
        self.failure_details[reason] = detail

    def outcome(self) -> str:
        """How many were answered and failed, and why: `0 answered, 12 failed: … Connection refused`."""
        return f"{self.model.reference}: {self._stored} answered, " + describe_failures(
            self.failed, self.failure_details
        )

    def require_an_answer(self) -> None:
        """Raises if the teacher has never given an answer with text or thoughts, in this run or before."""
        if self._stored == 0 and self.failed:
            raise EmptyCorpusError(self.outcome(), hint=f"Each failure is recorded in {self.failures.path}.")
        if self._empty and self._empty == self._stored:
            raise EmptyCorpusError(
                f"{self.model.reference} answered {self._empty} prompts, each with an empty text",
                hint="Check the model's chat template, collect.max_tokens and the server's log.",
            )


def _batches(exchanges: list[Exchange], size: int, done: set[str]) -> deque[list[Exchange]]:
    """Batches of ``size`` without the exchanges in ``done``."""
    # Grouped first, then thinned: a resumed run forms the same batches as an uninterrupted one.
    groups = (exchanges[start : start + size] for start in range(0, len(exchanges), size))
    missing = ([exchange for exchange in group if exchange.id not in done] for group in groups)
    return deque(group for group in missing if group)
