"""Counts that follow from a recipe and its prompts: requests, documents, tokens, dollars.

Nothing is tokenised: prompts are counted by their characters, and answers, which nobody
has yet, by what is assumed of them.
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
"""English text; 4.2 for SmolLM2 on MMLU questions."""
TEMPLATE_TOKENS = 20
"""What a chat template adds to an exchange."""
TYPICAL_ANSWER = 250
"""Tokens of an answer that max_tokens does not cut."""


@dataclass(frozen=True)
class Workload:
    """Counts that follow from recipe and prompts alone."""

    requests: float
    prompt_tokens: float
    """Of all requests, what the teacher is shown before them included."""
    new_tokens: float
    """Expected answers, all requests."""
    train_documents: float
    held_out_documents: int
    document_tokens: float
    """Of one document, after cutting."""
    counted: float
    """Share of a document's tokens that are learned."""
    trained_tokens: float
    """Over all passes."""


def estimate_workload(recipe: Recipe, train: Sequence[Prompt], held_out: Sequence[Prompt]) -> Workload:
    """How many requests and tokens a run has to do with; prompts are counted by their characters."""
    samples, limit = recipe.collect.samples, recipe.collect.max_total_tokens
    every = [*train, *held_out]
    asked = [p for p in every if not p.is_finished]
    lengths = [sum(len(str(m.get("content") or "")) for m in p.messages) for p in every]
    mean_text = sum(lengths) / len(every) / CHARS_PER_TOKEN + TEMPLATE_TOKENS
    context = _context_tokens(recipe)
    answer = min(recipe.collect.max_tokens, TYPICAL_ANSWER)
    share_asked = len(asked) / len(every)
    requests = len(asked) * samples
    asking = mean_text + context + answer
    done = 1.0 if limit is None or not requests else min(1.0, limit / (requests * asking))
    read = mean_text + (0.0 if recipe.teacher.context == "private" else context)
    document = min(read + answer * share_asked, recipe.train.max_length)
    documents = len(train) * (samples * share_asked * done + 1 - share_asked)
    counted = 1.0 if recipe.objective.loss_on == "all" else _answer_share(every, answer, mean_text)
    return Workload(
        requests=requests * done,
        prompt_tokens=requests * done * (mean_text + context),
        new_tokens=requests * done * answer,
        train_documents=documents,
        held_out_documents=len(held_out),
        document_tokens=document,
        counted=counted,
        trained_tokens=recipe.train.tokens or recipe.train.epochs * documents * document,
    )


def _context_tokens(recipe: Recipe) -> float:
    """What the teacher's system prompt and examples add to a request."""
    from stillhouse.corpus import load_context

    shown = load_context(recipe.teacher)
    texts = [shown.system or "", *(str(message["content"]) for message in shown.examples)]
    return sum(map(len, texts)) / CHARS_PER_TOKEN


def _answer_share(prompts: Sequence[Prompt], answer: float, mean_text: float) -> float:
    """Share of the assistant's tokens in all."""
    finished = [p for p in prompts if p.is_finished]
    written = sum(
        len(str(m.get("content") or "")) for p in finished for m in p.messages if m["role"] == "assistant"
    )
    answers = written / CHARS_PER_TOKEN + answer * (len(prompts) - len(finished))
    return answers / (len(prompts) * mean_text + answer * (len(prompts) - len(finished)))


def api_cost(recipe: Recipe, workload: Workload, asked: Sequence[Prompt]) -> float | None:
    """What APIs would be paid; None when the recipe does not say their prices.

    Args:
        asked: the prompts without answers, which say how the requests are shared among several teachers.
    """
    spent, every = 0.0, [prompt for prompt in asked if not prompt.is_finished]
    shares = Counter(teacher_number(recipe, prompt.tags) for prompt in every)
    for number, count in shares.items():
        teacher = all_teachers(recipe)[number]
        if not teacher.model.startswith("api:"):
            continue
        if teacher.price_in is None or teacher.price_out is None:
            return None
        paid = workload.prompt_tokens * teacher.price_in + workload.new_tokens * teacher.price_out
        spent += paid * count / len(every) / 1e6
    return spent if recipe.collect.max_cost is None else min(spent, recipe.collect.max_cost)
