"""Exchanges to collect: one for each prompt and sample, with an id that covers all that decides the answer.

The id hashes prompt, sample number, teacher and sampling. Whatever changes the answer changes the id, so an
answer is never used for another recipe.
"""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stillhouse.corpus.messages import reply_message, without_weights
from stillhouse.corpus.prompts.context import Context, load_context
from stillhouse.corpus.schema import Row
from stillhouse.hashing import seed_from, sha256_json
from stillhouse.models import Request, Sampling
from stillhouse.recipe import Collect, Teacher
from stillhouse.recipe.teachers import request_options

if TYPE_CHECKING:
    from stillhouse.corpus.prompts.prompt import Prompt
    from stillhouse.models import Message, Model, Reply

IMPORTED = "imported"
"""The teacher of an exchange that a file already contains: no model is asked."""


@dataclass(frozen=True)
class Exchange:
    """One request to the teacher, or one finished exchange from a file."""

    id: str
    split: str
    prompt: Prompt
    sample: int
    request: Request
    messages: list[Message]
    """The conversation as the corpus stores it: without a private context of the teacher."""

    @property
    def is_finished(self) -> bool:
        return self.prompt.is_finished


def plan_exchanges(
    prompts: Iterable[tuple[str, Prompt]], model: Model, settings: Collect, teacher: Teacher, seed: int
) -> list[Exchange]:
    """Every exchange of a collection: first sample 0 of every prompt, then sample 1, and so on.

    A held-out prompt is asked once, whatever `samples` is: intervals count prompts, so a second answer
    would add nothing. A prompt that occurs twice counts once, with its first split.
    """
    unique = {prompt.id: (split, prompt) for split, prompt in reversed(list(prompts))}
    ordered = list(reversed(unique.values()))
    context, options = load_context(teacher), request_options(teacher)
    return [
        _exchange(split, prompt, sample, model, settings, context, options, seed)
        for sample in range(settings.samples)
        for split, prompt in ordered
        if sample == 0 or not (prompt.is_finished or split == "held_out")
    ]


def _exchange(
    split: str,
    prompt: Prompt,
    sample: int,
    model: Model,
    settings: Collect,
    context: Context,
    options: dict[str, Any],
    seed: int,
) -> Exchange:
    open_settings = {"temperature": settings.temperature, "top_p": settings.top_p}
    unset = tuple(name for name, value in open_settings.items() if value is None)
    sampling = {
        **{name: 1.0 if value is None else value for name, value in open_settings.items()},
        "top_k": settings.top_k,
        "max_tokens": settings.max_tokens,
        "top_logprobs": settings.top_logprobs,
    }
    # Options are in the list only where there are any: ids of earlier versions stay as they are.
    asked = [model.fingerprint, context.key, sampling, seed, *([options] if options else [])]
    source = IMPORTED if prompt.is_finished else asked
    id = sha256_json([prompt.id, sample, source])[:32]
    sample_seed = seed_from(f"sample {seed} {id}")
    request = Request(
        id,
        without_weights(context.for_teacher(prompt.messages)),
        Sampling(**sampling, seed=sample_seed),
        api_defaults=unset if model.reference.startswith("api:") else (),
    )
    return Exchange(id, split, prompt, sample, request, context.for_student(prompt.messages))


def question_row(exchange: Exchange, model: Model, terms: str) -> Row:
    """The columns that are known before there is an answer."""
    sampling = exchange.request.sampling
    return {
        "id": exchange.id,
        "prompt_id": exchange.prompt.id,
        "sample": exchange.sample,
        "split": exchange.split,
        "messages": exchange.messages,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "max_tokens": sampling.max_tokens,
        "seed": sampling.seed,
        "teacher": model.reference,
        "teacher_hash": model.fingerprint,
        "template_hash": model.template_hash,
        "terms": terms,
        "prompt_source": exchange.prompt.source,
        "collected_at": _now(),
        "tags": json.dumps(exchange.prompt.tags, ensure_ascii=False),
    }


def answer_row(question: Row, reply: Reply, cost_usd: float | None) -> Row:
    """The finished row: the question with the teacher's answer, its tokens and cost."""
    return question | {
        # The server's own value applied, which is unknown.
        **dict.fromkeys(reply.not_sent),
        "messages": [*question["messages"], reply_message(reply)],
        "finish_reason": reply.finish_reason,
        "request_id": reply.request_id,
        "prompt_tokens": reply.prompt_tokens,
        "completion_tokens": reply.completion_tokens,
        "cost_usd": cost_usd,
        "top_logprobs": json.dumps(reply.top_logprobs) if reply.top_logprobs else None,
    }


def imported_row(exchange: Exchange, terms: str) -> Row:
    """The row of a finished exchange from a file; its sampling is unknown."""
    return {
        "id": exchange.id,
        "prompt_id": exchange.prompt.id,
        "sample": 0,
        "split": exchange.split,
        "messages": exchange.prompt.messages,
        "tools": exchange.prompt.tools or None,
        "finish_reason": "stop",
        "teacher": IMPORTED,
        "terms": terms,
        "prompt_source": exchange.prompt.source,
        "collected_at": _now(),
        "tags": json.dumps(exchange.prompt.tags, ensure_ascii=False),
    }


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
