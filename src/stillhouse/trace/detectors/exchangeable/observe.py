"""The transcript of the exchangeable test: scores of delivered outputs and their resamples."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stillhouse.console import Progress, console
from stillhouse.errors import CapabilityError, UsageError
from stillhouse.hashing import sha256_json
from stillhouse.stats import log_rank_e_process, rounds_until, usable_items
from stillhouse.trace.delivered_log import Delivered, Log
from stillhouse.trace.detectors.exchangeable.scores import (
    RankingScore,
    find_score,
    min_k,
    ngram_overlap,
    score_matrix,
    split_in_half,
)
from stillhouse.trace.resample import Resamples, log_metadata
from stillhouse.trace.suspects.base import Prompt, Suspect
from stillhouse.trace.suspects.resumable import ResumableAnswers

METADATA_KEY = b"exchangeable"
"""Key of the transcript's metadata about log and resamples, JSON."""
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("account", pa.string()),
        ("draw", pa.int32()),
        ("text", pa.string()),
        ("tokens", pa.int32()),
        ("loglik", pa.float64()),
        ("min_k", pa.float64()),
        ("reference_loglik", pa.float64()),
        ("teacher_loglik", pa.float64()),
        ("teacher_tokens", pa.int32()),
        ("overlap", pa.float64()),
    ]
)
LARGE_CHUNK, SMALL_CHUNK = 512, 64
"""Outputs scored at once: by a small local model, and by any other, which may stop early or cost money."""
SMALL_MODEL = 2**24
"""Largest number of parameters of a small model, which scores a large chunk in less than a minute."""
CHARACTERS_PER_TOKEN = 3
"""A continuation may have one token for this many characters of the true rest, usually more than it needs."""


@dataclass(frozen=True)
class _Item:
    """A delivered output and the resamples that it is compared with."""

    row: Delivered
    resamples: list[str]

    @property
    def texts(self) -> list[str]:
        return [self.row.output, *self.resamples]


def observe(
    suspect: Suspect,
    log: Log,
    resamples: Resamples,
    *,
    scores: Sequence[str] = ("loglik",),
    reference: Suspect | None = None,
    teacher: Suspect | None = None,
    seed: int = 0,
    stop_at: float | None = None,
    public: Iterable[str] | None = None,
    progress: Progress | None = None,
    journal: Path | None = None,
) -> pa.Table:
    """Scores every delivered output and its resamples with the suspect; returns the transcript for `judge`.

    Outputs come in an order drawn from ``seed``. Asking ends after the last output, when a budget is used up,
    or when the e-process of the first score reaches ``stop_at``. An output is scored together with all its
    resamples or not at all.

    Args:
        scores: names in :data:`stillhouse.trace.detectors.exchangeable.scores.SCORES`; decides the columns
            that are measured.
        reference: a model unrelated to the log, for the score `reference`, and to check that it prefers
            neither outputs nor resamples.
        teacher: the archived teacher, for the score `teacher`.
        stop_at: pass it to `judge` too.
        public: public texts, to be searched for the outputs.
        journal: file that keeps answers, so that an interrupted run resumes.

    Raises:
        UsageError: a score is unknown, or its `reference` or `teacher` model is missing.
        CapabilityError: a model cannot do what a score needs.
    """
    ranking_scores = [find_score(name) for name in scores]
    columns = {column for score in ranking_scores for column in score.columns}
    if reference is not None:
        columns.add("reference_loglik")
    if "teacher_loglik" not in columns:
        teacher = None
    _require_able(suspect, reference, teacher, columns)
    items = _items(log, resamples, seed)
    tables: list[pa.Table] = []
    small = suspect.parameters is not None and suspect.parameters <= SMALL_MODEL
    size = LARGE_CHUNK if small and stop_at is None else SMALL_CHUNK
    own_progress = console.progress("trace", len(items), "outputs")
    models = [model and model.fingerprint for model in (suspect, reference, teacher)]
    questions = [models, sorted(columns), size, [[item.row.id, *item.texts] for item in items]]
    with (
        contextlib.nullcontext(progress) if progress else own_progress as bar,
        contextlib.closing(ResumableAnswers(journal, questions)) as answers,
    ):
        for start in range(0, len(items), size):
            chunk = items[start : start + size]
            texts = [text for item in chunk for text in item.texts]
            if not answers.knows_next and not suspect.affords(texts):
                console.warn(f"the budget ends after {start:,} of {len(items):,} outputs")
                break
            rows = answers.next(
                lambda chunk=chunk: _transcript_rows(suspect, reference, teacher, chunk, columns).to_pylist()
            )
            tables.append(pa.Table.from_pylist(rows, SCHEMA))
            bar.advance(len(chunk))
            if stop_at is not None and _reached_stop(pa.concat_tables(tables), ranking_scores[0], stop_at):
                break
    metadata = log_metadata(log, resamples, public) | {"log_size": len(items)}
    transcript = pa.concat_tables(tables) if tables else SCHEMA.empty_table()
    return transcript.replace_schema_metadata({METADATA_KEY: json.dumps(metadata).encode()})


def _require_able(
    suspect: Suspect, reference: Suspect | None, teacher: Suspect | None, columns: set[str]
) -> None:
    if columns & {"loglik", "min_k"} and not suspect.can.logprobs:
        raise CapabilityError(
            f"{suspect.reference} gives no log-probabilities of a given text",
            hint="Use the score `overlap`, which needs text only.",
        )
    if "overlap" in columns and not suspect.can.generate:
        raise CapabilityError(f"{suspect.reference} does not continue a text")
    if "reference_loglik" in columns and reference is None:
        raise UsageError("the score `reference` needs a reference model", hint="Give one with --reference.")
    if "teacher_loglik" in columns and teacher is None:
        raise UsageError("the score `teacher` needs the archived teacher", hint="Give it with --teacher.")
    for model in (reference, teacher):
        if model is not None and not model.can.logprobs:
            raise CapabilityError(f"{model.reference} gives no log-probabilities of a given text")


def _items(log: Log, resamples: Resamples, seed: int) -> list[_Item]:
    """Delivered outputs that have resamples, in a random order."""
    # The log keeps only the first of equal outputs to one prompt, so a resample that equals an earlier output
    # is left out too; otherwise delivered outputs and resamples would not be exchangeable.
    earlier: dict[str, set[str]] = {}
    items = []
    for row in log.rows:
        before = earlier.setdefault(sha256_json(list(row.prompt)), set())
        fresh = [text for text in resamples.texts.get(row.id, ()) if text not in before]
        before.add(row.output)
        if fresh:
            items.append(_Item(row, fresh))
    return [items[index] for index in np.random.default_rng(seed).permutation(len(items))]


def _transcript_rows(
    suspect: Suspect,
    reference: Suspect | None,
    teacher: Suspect | None,
    items: Sequence[_Item],
    columns: set[str],
) -> pa.Table:
    """Transcript rows of some outputs, with the given columns measured."""
    rows = [(item.row, draw, text) for item in items for draw, text in enumerate(item.texts)]
    prompts, texts = [row.prompt for row, _, _ in rows], [text for _, _, text in rows]
    absent: list[Any] = [None] * len(rows)
    scored = suspect.loglik(prompts, texts) if columns & {"loglik", "min_k"} else absent
    by_reference, by_teacher = (
        model.loglik(prompts, texts) if model else absent for model in (reference, teacher)
    )
    overlaps = _overlaps(suspect, prompts, texts) if "overlap" in columns else absent
    return pa.table(
        {
            "id": [row.id for row, _, _ in rows],
            "account": [row.account for row, _, _ in rows],
            "draw": [draw for _, draw, _ in rows],
            "text": texts,
            "tokens": [text and text.tokens for text in scored],
            "loglik": [text and text.loglik for text in scored],
            "min_k": [text and min_k(text.token_logps) for text in scored],
            "reference_loglik": [text and text.loglik for text in by_reference],
            "teacher_loglik": [text and text.loglik for text in by_teacher],
            "teacher_tokens": [text and text.tokens for text in by_teacher],
            "overlap": overlaps,
        },
        schema=SCHEMA,
    )


def _overlaps(suspect: Suspect, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float | None]:
    halves = [split_in_half(text) for text in texts]
    lengths = [len(rest) // CHARACTERS_PER_TOKEN + 4 for _, rest in halves]
    continued = suspect.continuations(prompts, [beginning for beginning, _ in halves], lengths)
    return [
        None if text is None else ngram_overlap(text, rest)
        for text, (_, rest) in zip(continued, halves, strict=True)
    ]


def _reached_stop(transcript: pa.Table, score: RankingScore, stop_at: float) -> bool:
    scores_NK1 = usable_items(score_matrix(transcript, score).scores_NK1)
    if not len(scores_NK1):
        return False
    return rounds_until(log_rank_e_process(scores_NK1), stop_at) is not None
