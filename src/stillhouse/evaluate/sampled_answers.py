"""pass@1 and majority vote: samples answers to held-out prompts and scores them with verifiers.

All models get the same seeds, so that a difference between two models does not come from
the seeds alone. An answer that `sample_tokens` cuts off is scored like any other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stillhouse.console import console
from stillhouse.hashing import seed_from
from stillhouse.recipe import Evaluate
from stillhouse.stats import clipped, interval, majority, paired_difference
from stillhouse.verifiers import Answer, Verifiers

if TYPE_CHECKING:
    from stillhouse.corpus import Prompt
    from stillhouse.evaluate.compare import Candidate
    from stillhouse.models import Reply, Request

RIGHT = 1.0 - 1e-9
"""Smallest reward of a correct answer; pass@1 is the share of correct answers."""


def sample_and_score(
    candidates: Sequence[Candidate],
    prompts: Sequence[Prompt],
    settings: Evaluate,
    verifiers: Verifiers,
    *,
    seed: int,
    least: float = RIGHT,
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """``pass_at_1`` and ``consensus_at_k`` of each candidate, and the student's differences from the others.

    Args:
        prompts: held-out prompts with their tags; the answer of a finished exchange is left out.
        settings: samples (k), temperature, sample_tokens, confidence.
        least: smallest reward of a correct answer.

    Returns:
        Both by the candidate's key: its entries with intervals clustered by prompt, and the paired difference
        in pass@1, student minus candidate.
    """
    shares: dict[str, list[float]] = {}
    estimates: dict[str, dict[str, Any]] = {}
    with console.progress("samples", len(candidates), "models") as progress:
        for candidate in candidates:
            judged = judge_answers(candidate, prompts, settings, verifiers, seed=seed, least=least)
            estimates[candidate.key] = _estimates(judged, settings)
            shares[candidate.key] = [each.first for each in judged]
            progress.advance()
    ones = [1.0] * len(prompts)
    differences = {
        key: paired_difference(shares["student"], other, ones, settings.confidence).to_dict()
        for key, other in shares.items()
        if key != "student" and "student" in shares
    }
    return estimates, differences


@dataclass(frozen=True)
class Judged:
    """Scores of one model's k answers to one prompt."""

    first: float
    """Share of correct answers: an estimate of pass@1."""
    vote: float
    """1 if the majority answer is correct, else 0; a tie counts by its correct share."""
    thought: float
    """Share of answers with reasoning before them."""
    tokens: float
    """Mean length of an answer, reasoning included."""
    example: str
    """The first answer, reasoning included."""


def judge_answers(
    candidate: Candidate,
    prompts: Sequence[Prompt],
    settings: Evaluate,
    verifiers: Verifiers,
    *,
    seed: int,
    least: float = RIGHT,
) -> list[Judged]:
    """Samples ``settings.samples`` answers to every prompt; returns one entry for each prompt, in order."""
    replies = _replies(candidate, _requests(candidate, prompts, settings, seed))
    k = settings.samples
    return [
        _judge(prompt, replies[k * number : k * number + k], verifiers, least)
        for number, prompt in enumerate(prompts)
    ]


def _requests(
    candidate: Candidate, prompts: Sequence[Prompt], settings: Evaluate, seed: int
) -> list[Request]:
    from stillhouse.models import Request, Sampling

    requests = []
    for prompt in prompts:
        for number in range(settings.samples):
            sampling = Sampling(
                temperature=settings.temperature,
                # no truncation: pass@1 is about the model's own distribution
                top_p=1.0,
                top_k=0,
                max_tokens=settings.sample_tokens,
                # depends on the prompt and not on the model, so that all models get the same seeds
                seed=seed_from(f"evaluate {seed} {prompt.id} {number}"),
            )
            messages = candidate.shown(prompt.question)
            requests.append(Request(f"{prompt.id}-{number}", messages, sampling))
    return requests


def _replies(candidate: Candidate, requests: Sequence[Request]) -> list[Reply | None]:
    """One reply for each request; None if the request failed (a prompt longer than the context)."""
    from stillhouse.errors import OutOfMemoryError, StillhouseError
    from stillhouse.models import TorchModel

    async def ask() -> list[Reply | StillhouseError]:
        model = TorchModel(candidate.weights, seed=0)
        try:
            return await model.generate(requests)
        finally:
            await model.close()

    replies = asyncio.run(ask())
    for reply in replies:
        if isinstance(reply, OutOfMemoryError):
            raise reply
    return [None if isinstance(reply, StillhouseError) else reply for reply in replies]


def _judge(prompt: Prompt, replies: Sequence[Reply | None], verifiers: Verifiers, least: float) -> Judged:
    from stillhouse.corpus import reply_message

    answers, texts, tokens = [], [], []
    for reply in replies:
        if reply is None:
            continue
        message = reply_message(reply)
        thoughts = message.get("reasoning_content")
        answers.append(Answer(message["content"], thoughts, prompt.tags, prompt.question))
        texts.append(f"<think>{thoughts}</think>{message['content']}" if thoughts else message["content"])
        tokens.append(reply.completion_tokens)
    rewards = [score.value for score in verifiers.score(answers)]
    # over all replies: an answer that a model could not give counts as wrong
    return Judged(
        first=sum(reward >= least for reward in rewards) / len(replies),
        vote=majority([verifiers.vote(answer) for answer in answers], rewards, least),
        thought=sum(answer.reasoning is not None for answer in answers) / len(replies),
        tokens=sum(tokens) / len(replies),
        example=texts[0] if texts else "",
    )


def _estimates(judged: Sequence[Judged], settings: Evaluate) -> dict[str, Any]:
    ones = [1.0] * len(judged)

    def estimate(values: list[float]) -> dict[str, Any]:
        return clipped(interval(values, ones, settings.confidence), 0.0, 1.0).to_dict()

    return {
        "pass_at_1": estimate([each.first for each in judged]),
        "consensus_at_k": estimate([each.vote for each in judged]),
        "samples": settings.samples,
    }
