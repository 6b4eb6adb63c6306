"""Estimates the workload of a recipe from its prompts: requests, documents, tokens, dollars.

Nothing is tokenised: tokens of prompts are estimated from their characters, and answers,
which do not exist yet, have an assumed length.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from stillhouse.recipe import Recipe
from stillhouse.recipe.teachers import all_teachers, teacher_number

if TYPE_CHECKING:
    from stillhouse.corpus import Prompt

CHARS_PER_TOKEN = 4.0
"""For English text; 4.2 for SmolLM2 on MMLU questions."""
TEMPLATE_TOKENS = 20
"""Tokens that a chat template adds to an exchange."""
TYPICAL_ANSWER = 250
"""Assumed tokens of an answer that max_tokens does not cut."""


@dataclass(frozen=True)
class Workload:
    """Counts that depend on recipe and prompts alone."""

    requests: float
    prompt_tokens: float
    """Prompt tokens of all requests, including the teacher's context."""
    new_tokens: float
    """Expected answer tokens of all requests."""
    train_documents: float
    held_out_documents: int
    document_tokens: float
    """Tokens of one document, after truncation."""
    counted: float
    """Share of a document's tokens that count in the loss."""
    trained_tokens: float
    """Training tokens over all epochs."""


def estimate_workload(recipe: Recipe, train: Sequence[Prompt], held_out: Sequence[Prompt]) -> Workload:
    """Estimates requests, documents and tokens of a run; ``held_out`` prompts are answered too."""
    samples, limit = recipe.collect.samples, recipe.collect.max_total_tokens
    prompts = [*train, *held_out]
    unanswered = [p for p in prompts if not p.is_finished]
    lengths = [sum(len(str(m.get("content") or "")) for m in p.messages) for p in prompts]
    mean_text = sum(lengths) / len(prompts) / CHARS_PER_TOKEN + TEMPLATE_TOKENS
    context = _context_tokens(recipe)
    answer = min(recipe.collect.max_tokens, TYPICAL_ANSWER)
    share_unanswered = len(unanswered) / len(prompts)
    requests = len(unanswered) * samples
    request_tokens = mean_text + context + answer
    within_limit = 1.0 if limit is None or not requests else min(1.0, limit / (requests * request_tokens))
    read = mean_text + (0.0 if recipe.teacher.context == "private" else context)
    document = min(read + answer * share_unanswered, recipe.train.max_length)
    documents = len(train) * (samples * share_unanswered * within_limit + 1 - share_unanswered)
    counted = 1.0 if recipe.objective.loss_on == "all" else _answer_share(prompts, answer, mean_text)
    return Workload(
        requests=requests * within_limit,
        prompt_tokens=requests * within_limit * (mean_text + context),
        new_tokens=requests * within_limit * answer,
        train_documents=documents,
        held_out_documents=len(held_out),
        document_tokens=document,
        counted=counted,
        trained_tokens=recipe.train.tokens or recipe.train.epochs * documents * document,
    )


def _context_tokens(recipe: Recipe) -> float:
    """Tokens that the teacher's system prompt and examples add to a request."""
    from stillhouse.corpus import load_context

    context = load_context(recipe.teacher)
    texts = [context.system or "", *(str(message["content"]) for message in context.examples)]
    return sum(map(len, texts)) / CHARS_PER_TOKEN


def _answer_share(prompts: Sequence[Prompt], answer: float, mean_text: float) -> float:
    """Share of assistant tokens in all tokens."""
    finished = [p for p in prompts if p.is_finished]
    written = sum(
        len(str(m.get("content") or "")) for p in finished for m in p.messages if m["role"] == "assistant"
    )
    answers = written / CHARS_PER_TOKEN + answer * (len(prompts) - len(finished))
    return answers / (len(prompts) * mean_text + answer * (len(prompts) - len(finished)))


def api_cost(recipe: Recipe, workload: Workload, prompts: Sequence[Prompt]) -> float | None:
    """Dollars for the APIs' tokens; None if the recipe does not state their prices.

    Args:
        prompts: all prompts; those without answers decide each teacher's share of the requests.
    """
    spent, unanswered = 0.0, [prompt for prompt in prompts if not prompt.is_finished]
    shares = Counter(teacher_number(recipe, prompt.tags) for prompt in unanswered)
    for number, count in shares.items():
        teacher = all_teachers(recipe)[number]
        if not teacher.model.startswith("api:"):
            continue
        if teacher.price_in is None or teacher.price_out is None:
            return None
        paid = workload.prompt_tokens * teacher.price_in + workload.new_tokens * teacher.price_out
        spent += paid * count / len(unanswered) / 1e6
    return spent if recipe.collect.max_cost is None else min(spent, recipe.collect.max_cost)
