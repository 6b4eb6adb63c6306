"""Rows, prompts and an in-memory teacher for the tests of the corpus."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from stillhouse.corpus import Corpus, Prompt, collect_answers
from stillhouse.corpus.collect.loop import CollectSummary
from stillhouse.errors import StillhouseError
from stillhouse.hashing import sha256_json
from stillhouse.models import Capabilities, Reply, Request
from stillhouse.recipe import Collect, Teacher


def make_row(number: int, *, answer: str | None = None, split: str = "train", **columns) -> dict:
    question = columns.pop("question", f"What is {number} and {number}?")
    answer = answer if answer is not None else f"It is {2 * number}."
    return {
        "id": f"id{number:06d}",
        "prompt_id": f"prompt{number:06d}",
        "sample": 0,
        "split": split,
        "messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
        "finish_reason": "stop",
        "temperature": 0.5,
        "seed": number,
        "prompt_tokens": 7,
        "completion_tokens": 5,
        "tags": "{}",
    } | columns


def make_prompt(text: str, **columns) -> Prompt:
    messages = [{"role": "user", "content": text}]
    return Prompt(sha256_json(messages)[:32], messages, "test", columns)


def make_prompts(count: int) -> list[Prompt]:
    return [make_prompt(f"Question number {number}: why?") for number in range(count)]


class FakeTeacher:
    """Implements the Model protocol; ``answer`` says what becomes of each request."""

    reference = "fake:teacher"
    fingerprint = "f" * 64
    template_hash: str | None = "t" * 64
    context_length: int | None = None
    can = Capabilities(generate=True, logprobs=False, train=False)

    def __init__(
        self,
        answer: Callable[[Request], str | Reply | StillhouseError] = lambda r: f"Answer {r.sampling.seed}.",
        *,
        max_batch: int = 1,
        concurrency: int = 8,
        delay_s: float = 0.0,
    ) -> None:
        self.answer, self.max_batch, self.concurrency, self.delay_s = answer, max_batch, concurrency, delay_s
        self.pushbacks = 0
        self.asked: list[list[str]] = []
        self.under_way = self.most_under_way = 0

    async def generate(self, requests: Sequence[Request]) -> list[Reply | StillhouseError]:
        self.asked.append([request.id for request in requests])
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            await asyncio.sleep(self.delay_s)
            return [self._result(request) for request in requests]
        finally:
            self.under_way -= 1

    def _result(self, request: Request) -> Reply | StillhouseError:
        result = self.answer(request)
        if isinstance(result, str):
            return Reply(result, None, "stop", prompt_tokens=10, completion_tokens=20)
        return result

    async def close(self) -> None:
        pass


def run_collect(
    model,
    prompts: Sequence[Prompt],
    corpus: Corpus,
    *,
    held_out: Sequence[Prompt] = (),
    teacher: Teacher | None = None,
    seed: int = 0,
    **settings,
) -> CollectSummary:
    pairs = [("held_out", prompt) for prompt in held_out] + [("train", prompt) for prompt in prompts]
    return asyncio.run(
        collect_answers(
            model,
            pairs,
            corpus,
            Collect(**settings),
            teacher=teacher or Teacher(model="fake:teacher"),
            terms="apache-2.0",
            seed=seed,
        )
    )
