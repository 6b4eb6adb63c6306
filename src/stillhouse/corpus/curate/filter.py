"""Keeps what is worth learning from, in an order of its own, and every reject with its reason.

The result depends on the rows alone, not on the order in which they were collected: rows
are taken sorted by prompt and sample. Held-out rows measure the student and are not
learned from, so only empty, cut-off, too short and too long answers are taken from them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.corpus.collect.failures import Failures
from stillhouse.corpus.curate import checks as filters
from stillhouse.corpus.curate.checks import Check
from stillhouse.corpus.curate.near_duplicates import NearDuplicates
from stillhouse.corpus.prompts.prompt import Prompt
from stillhouse.corpus.schema import REJECT_SCHEMA, Row
from stillhouse.corpus.store.corpus import Corpus
from stillhouse.corpus.store.external_sort import sorted_rows
from stillhouse.recipe import Filter

HELD_OUT_OVERLAP = "prompt overlaps a held-out one"


@dataclass(frozen=True)
class FilterSummary:
    """How many exchanges were kept and turned away."""

    kept: int
    """Exchanges to train on."""
    held_out: int
    """Exchanges to measure with."""
    rejected: dict[str, int]
    """By reason; a check that was made and found nothing has 0."""


def filter_corpus(
    source: Corpus,
    target: Corpus,
    settings: Filter,
    *,
    held_out: list[Prompt],
    dropped: Sequence[Prompt] = (),
    rejects: Path | None = None,
) -> FilterSummary:
    """Writes the rows of ``source`` that pass to ``target``, anew, sorted by prompt id and sample.

    Args:
        held_out: prompts that measure the student; what overlaps them is not trained on.
        dropped: prompts that were not asked because they overlap; they join the rejects.
        rejects: directory of the rejects, a corpus with two more columns, `reason` and `detail`
            (default: ``rejects`` beside ``target``). Requests that failed are there too.

    Raises:
        CorpusError: a shard of ``source`` is damaged.
        StorageError: the disk is full; ``source`` is untouched and the command can be run again.
    """
    turned_away = Corpus(rejects or target.directory.parent / "rejects", schema=REJECT_SCHEMA)
    turned_away.replace(())
    counts: dict[str, int] = {}

    def reject(row: Row, reason: str, detail: str) -> None:
        counts[reason] = counts.get(reason, 0) + 1
        turned_away.append(row | {"reason": reason, "detail": detail})

    with contextlib.ExitStack() as stack:
        stack.callback(turned_away.seal)
        directory = turned_away.directory
        for_all = _checks_for_all(settings, counts)
        for_training = _checks_for_training(settings, held_out, counts, directory, stack)
        kept = {"train": 0, "held_out": 0}

        def passing() -> Iterator[Row]:
            for row in sorted_rows(source.rows(), _place, source.schema, directory):
                checks = for_all if row["split"] == "held_out" else [*for_all, *for_training]
                found = next(filter(None, (check(row) for check in checks)), None)
                if found:
                    reject(row, *found)
                else:
                    kept[row["split"]] += 1
                    yield row if settings.thoughts else _without_thoughts(row)

        target.replace(passing())
        _add_unanswered(source, dropped, reject)
    return FilterSummary(kept["train"], kept["held_out"], counts)


def _without_thoughts(row: Row) -> Row:
    """The row with the answers alone."""
    turns = [{k: v for k, v in turn.items() if k != "reasoning_content"} for turn in row["messages"]]
    return row | {"messages": turns}


def _place(row: Row) -> tuple[str, int, str]:
    return row["prompt_id"], row["sample"], row["id"]


def _checks_for_all(settings: Filter, counts: dict[str, int]) -> list[Check]:
    checks = [filters.empty_check(settings)]
    counts[filters.EMPTY] = 0
    if settings.truncated:
        checks.append(filters.check_truncated)
        counts[filters.TRUNCATED] = 0
    checks.append(filters.length_check(settings))
    counts[filters.TOO_SHORT] = 0
    if settings.max_chars is not None:
        counts[filters.TOO_LONG] = 0
    return checks


def _checks_for_training(
    settings: Filter,
    held_out: list[Prompt],
    counts: dict[str, int],
    directory: Path,
    stack: contextlib.ExitStack,
) -> list[Check]:
    """The checks on rows that are learned from, the cheap ones first and the one that remembers last."""
    checks: list[Check] = []
    if settings.refusals:
        checks.append(filters.check_refusal)
        counts[filters.REFUSAL] = 0
    if settings.contamination_ngram is not None:
        checks.append(filters.contamination_check(held_out, settings.contamination_ngram))
        counts[filters.CONTAMINATION] = 0
    if settings.near_duplicates is not None:
        index = stack.enter_context(contextlib.closing(NearDuplicates(settings.near_duplicates, directory)))
        checks.append(filters.near_duplicate_check(index))
        counts[filters.NEAR_DUPLICATE] = 0
    return checks


def _add_unanswered(source: Corpus, dropped: Sequence[Prompt], reject: Any) -> None:
    """Adds requests that failed, and prompts that were never asked, to the rejects."""
    answered = source.ids()
    for id, line in sorted(Failures(source.directory).latest().items()):
        if id not in answered:
            row = {name: line[name] for name in source.schema.names if name in line}
            reject(row, line["reason"], line["detail"])
    for prompt in dropped:
        row = {"id": prompt.id, "prompt_id": prompt.id, "split": "train", "messages": prompt.messages}
        reject(row | {"prompt_source": prompt.source}, HELD_OUT_OVERLAP, "")
