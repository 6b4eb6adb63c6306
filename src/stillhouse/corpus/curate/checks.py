"""The checks of the filter: each takes a row and returns None, or a reason and details to reject it.

No check changes a row.
"""

from __future__ import annotations

from collections.abc import Callable

from stillhouse.corpus.curate.near_duplicates import NearDuplicates
from stillhouse.corpus.curate.refusals import is_refusal
from stillhouse.corpus.messages import answer_text, user_text
from stillhouse.corpus.ngrams import Quotations, ngrams
from stillhouse.corpus.prompts.prompt import Prompt
from stillhouse.corpus.schema import Row
from stillhouse.models.finish_reasons import (
    CONTENT_FILTER as CONTENT_FILTERED,
    ERROR,
    LENGTH,
    TOOL_CALLS,
    finish_class,
)
from stillhouse.recipe import Filter

Rejection = tuple[str, str]
"""Reason (a fixed phrase) and details."""
Check = Callable[[Row], Rejection | None]

EMPTY = "empty"
TRUNCATED = "truncated"
FAILED = "provider failed"
CONTENT_FILTER = "content filter"
TOO_SHORT = "too short"
TOO_LONG = "too long"
REFUSAL = "refusal"
CONTAMINATION = "contamination"
NEAR_DUPLICATE = "near duplicate"


def empty_check(settings: Filter) -> Check:
    """Rejects an answer without text, thoughts alone included.

    Thoughts that were cut off are left to `truncated`: a recipe that keeps cut-off answers keeps these.
    """

    def check(row: Row) -> Rejection | None:
        if answer_text(row["messages"]).strip():
            return None
        cut_off = finish_class(row["finish_reason"]) == LENGTH and bool(
            row["messages"][-1].get("reasoning_content")
        )
        return None if cut_off and settings.thoughts and not settings.truncated else (EMPTY, "")

    return check


def check_truncated(row: Row) -> Rejection | None:
    """Rejects an answer that `max_tokens` or the context cut off, or that ends where a tool is called."""
    reason = finish_class(row["finish_reason"])
    if reason == TOOL_CALLS:
        return TRUNCATED, "the answer ends with the call of a tool"
    return (TRUNCATED, f"cut off after {row['completion_tokens']} tokens") if reason == LENGTH else None


def check_failed(row: Row) -> Rejection | None:
    """Rejects an answer in the middle of which the provider failed; only old corpora have any."""
    failed = finish_class(row["finish_reason"]) == ERROR
    return (FAILED, f"finish reason {row['finish_reason']!r}") if failed else None


def check_content_filter(row: Row) -> Rejection | None:
    """Rejects an answer that the provider's content filter cut off."""
    filtered = finish_class(row["finish_reason"]) == CONTENT_FILTERED
    return (CONTENT_FILTER, f"finish reason {row['finish_reason']!r}") if filtered else None


def length_check(settings: Filter) -> Check:
    """Rejects an answer with fewer or more characters than the recipe allows."""

    def check(row: Row) -> Rejection | None:
        count = len(answer_text(row["messages"]).strip())
        if 0 < count < settings.min_chars:
            return TOO_SHORT, f"{count} characters"
        if settings.max_chars is not None and count > settings.max_chars:
            return TOO_LONG, f"{count} characters"
        return None

    return check


def check_refusal(row: Row) -> Rejection | None:
    """Rejects a refusal (see :mod:`~stillhouse.corpus.curate.refusals`)."""
    answer = answer_text(row["messages"])
    return (REFUSAL, answer.strip()[:100]) if is_refusal(answer) else None


def contamination_check(held_out: list[Prompt], n: int) -> Check:
    """Rejects prompts that share a word n-gram with a held-out prompt, and answers that quote one."""
    texts = [user_text(prompt.messages) for prompt in held_out]
    in_prompts = set().union(*(ngrams(text, n) for text in texts))
    quotations = Quotations(texts, n)

    def check(row: Row) -> Rejection | None:
        shared = in_prompts & ngrams(user_text(row["messages"]), n)
        if shared:
            return CONTAMINATION, f"the prompt shares {min(shared)!r} with a held-out prompt"
        for message in row["messages"]:
            if message["role"] == "assistant":
                text = f"{message.get('reasoning_content') or ''}\n{message['content']}"
                quoted = quotations.first_in(text)
                if quoted is not None:
                    return CONTAMINATION, f"the answer quotes {quoted!r} from a held-out prompt"
        return None

    return check


def near_duplicate_check(index: NearDuplicates) -> Check:
    """Rejects an answer that nearly repeats an earlier one.

    An answer that passes joins the index, so this check comes last.
    """

    def check(row: Row) -> Rejection | None:
        earlier = index.find_or_add(row["id"], row["prompt_id"], answer_text(row["messages"]))
        return (NEAR_DUPLICATE, f"like {earlier}") if earlier is not None else None

    return check
