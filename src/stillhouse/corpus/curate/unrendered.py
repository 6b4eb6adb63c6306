"""Rejects exchanges that the student's chat template cannot render."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from stillhouse.corpus.curate.rejection_sampling import remove_rejects
from stillhouse.corpus.schema import Row
from stillhouse.corpus.store.corpus import Corpus
from stillhouse.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from stillhouse.models import ChatTemplate

UNRENDERED = "refused by the chat template"


def reject_unrendered(
    rows: Iterable[Row],
    tokenizer: PreTrainedTokenizerFast,
    template: ChatTemplate,
    rejects: Corpus,
    places: Mapping[str, str],
) -> tuple[int, int]:
    """Adds the rows that ``template`` cannot render to ``rejects``; replaces those of an earlier call.

    Training leaves the same rows out, so the corpus itself is not changed.

    Args:
        places: of prompts by their id, e.g. ``answers.jsonl:12``; joins the details.

    Returns:
        The number of rejected rows, and of all rows.

    Raises:
        StorageError: the disk is full.
    """
    remove_rejects(rejects, {UNRENDERED})
    total = rejected = 0
    try:
        for row in rows:
            total += 1
            try:
                template.check(tokenizer, row["messages"], tools=row.get("tools"))
            except ModelError as error:
                rejected += 1
                place = places.get(row["prompt_id"]) or row["prompt_source"]
                rejects.append(row | {"reason": UNRENDERED, "detail": f"{place}: {error}"})
    finally:
        rejects.seal()
    return rejected, total
