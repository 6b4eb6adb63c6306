"""Filters a corpus; every reject is stored with its reason.

Rows are filtered sorted by prompt and sample, so the result does not depend on the order of collection.
Held-out rows measure the student and are not trained on, so only empty, cut-off, filtered, too short and
too long answers are removed from them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from stillhouse.corpus.collect.failures import Failures
from stillhouse.corpus.curate import checks
from stillhouse.corpus.curate.checks import Check
from stillhouse.corpus.curate.near_duplicates import NearDuplicates
from stillhouse.corpus.prompts.prompt import Prompt, RejectedRecord
from stillhouse.corpus.schema import REJECT_SCHEMA, Row
from stillhouse.corpus.store.corpus import Corpus
from stillhouse.corpus.store.external_sort import sorted_rows
from stillhouse.recipe import Filter

HELD_OUT_OVERLAP = "prompt overlaps a held-out one"


@dataclass(frozen=True)
class FilterSummary:
    """How many exchanges were kept and rejected."""

    kept: int
    """Exchanges to train on."""
    held_out: int
    """Exchanges to measure with."""
    rejected: dict[str, int]
    """By reason; 0 for a check that ran and rejected nothing."""


def filter_corpus(
    source: Corpus,
    target: Corpus,
    settings: Filter,
    *,
    held_out: list[Prompt],
    dropped: Sequence[Prompt] = (),
    rejected_records: Sequence[RejectedRecord] = (),
    rejects: Path | None = None,
) -> FilterSummary:
    """Replaces ``target`` with the rows of ``source`` that pass, sorted by prompt id and sample.

    Args:
        held_out: prompts that measure the student; rows that overlap them are not trained on.
        dropped: prompts that were not asked because they overlap; they join the rejects.
        rejected_records: records of the prompt file that are no prompts; they join the rejects, too.
        rejects: directory of the rejects, a corpus with two more columns, `reason` and `detail`
            (default: ``rejects`` beside ``target``). Failed requests join them too.

    Raises:
        CorpusError: a shard of ``source`` is damaged.
        StorageError: the disk is full; ``source`` is untouched and the command can be run again.
    """
    rejected = Corpus(rejects or target.directory.parent / "rejects", schema=REJECT_SCHEMA)
    rejected.replace(())  # those of an earlier run
    counts: dict[str, int] = {}

    def reject(row: Row, reason: str, detail: str) -> None:
        counts[reason] = counts.get(reason, 0) + 1
        rejected.append(row | {"reason": reason, "detail": detail})

    with contextlib.ExitStack() as stack:
        stack.callback(rejected.seal)
        directory = rejected.directory
        for_all = _checks_for_all(settings, counts)
        for_training = _checks_for_training(settings, held_out, counts, directory, stack)
        kept = {"train": 0, "held_out": 0}

        def passing() -> Iterator[Row]:
            for row in sorted_rows(source.rows(), _order, source.schema, directory):
                applied = for_all if row["split"] == "held_out" else [*for_all, *for_training]
                rejection = next(filter(None, (check(row) for check in applied)), None)
                if rejection:
                    reject(row, *rejection)
                else:
                    kept[row["split"]] += 1
                    yield row if settings.thoughts else _without_thoughts(row)

        target.replace(passing())
        _add_unanswered(source, dropped, reject)
        for record in rejected_records:
            row = {"id": record.id, "split": "train", "prompt_source": record.source}
            reject(row, record.reason, record.detail)
    return FilterSummary(kept["train"], kept["held_out"], counts)


def _without_thoughts(row: Row) -> Row:
    """The row without the reasoning of its answers."""
    messages = [{k: v for k, v in message.items() if k != "reasoning_content"} for message in row["messages"]]
    return row | {"messages": messages}


def _order(row: Row) -> tuple[str, int, str]:
    return row["prompt_id"], row["sample"], row["id"]


def _checks_for_all(settings: Filter, counts: dict[str, int]) -> list[Check]:
    """The checks on training and held-out rows."""
    selected = [checks.empty_check(settings)]
    counts[checks.EMPTY] = 0
    selected.append(checks.check_failed)
    if settings.content_filter:
        selected.append(checks.check_content_filter)
    if settings.truncated:
        selected.append(checks.check_truncated)
        counts[checks.TRUNCATED] = 0
    selected.append(checks.length_check(settings))
    counts[checks.TOO_SHORT] = 0
    if settings.max_chars is not None:
        counts[checks.TOO_LONG] = 0
    return selected


def _checks_for_training(
    settings: Filter,
    held_out: list[Prompt],
    counts: dict[str, int],
    directory: Path,
    stack: contextlib.ExitStack,
) -> list[Check]:
    """The checks on training rows: cheap ones first; the near-duplicate check, which remembers, last."""
    selected: list[Check] = []
    if settings.refusals:
        selected.append(checks.check_refusal)
        counts[checks.REFUSAL] = 0
    if settings.contamination_ngram is not None:
        selected.append(checks.contamination_check(held_out, settings.contamination_ngram))
        counts[checks.CONTAMINATION] = 0
    if settings.near_duplicates is not None:
        index = stack.enter_context(contextlib.closing(NearDuplicates(settings.near_duplicates, directory)))
        selected.append(checks.near_duplicate_check(index))
        counts[checks.NEAR_DUPLICATE] = 0
    return selected


def _add_unanswered(source: Corpus, dropped: Sequence[Prompt], reject: Any) -> None:
    """Adds failed requests, and prompts that were never asked, to the rejects."""
    answered = source.ids()
    for id, line in sorted(Failures(source.directory).latest().items()):
        if id not in answered:
            row = {name: line[name] for name in source.schema.names if name in line}
            reject(row, line["reason"], line["detail"])
    for prompt in dropped:
        row = {"id": prompt.id, "prompt_id": prompt.id, "split": "train", "messages": prompt.messages}
        reject(row | {"prompt_source": prompt.source}, HELD_OUT_OVERLAP, "")
