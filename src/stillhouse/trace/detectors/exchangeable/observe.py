"""Asking the suspect about delivered outputs and their resamples: the transcript of the exchangeable test."""

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
from stillhouse.stats import log_e_process, rounds_until, usable_items
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

FACTS = b"exchangeable"
"""Key of the transcript's metadata: what is known of log and resamples, JSON."""
TRANSCRIPT = pa.schema(
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
MANY, FEW = 512, 64
"""Outputs asked at once: of a small model in memory; of others, where it may end soon, or costs."""
SMALL = 2**24
"""Parameters of a model that is small: many outputs take it less than a minute."""
CHARACTERS_PER_TOKEN = 3
"""A continuation gets a token for so many characters of the true rest: more than it needs, as a rule."""


@dataclass(frozen=True)
class _Item:
    """A delivered output and what it is held against."""

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
    """Asks the suspect about every delivered output and its resamples; the transcript that `judge` takes.

    Outputs are asked in an order drawn from ``seed``, until all are, a budget is used up, or the e-process of
    the first score reaches ``stop_at``. An output is asked together with all its resamples or not at all.

    Args:
        scores: names in :data:`.scoring.SCORES`; what they need is measured.
        reference: a model that had nothing to do with the log, for the score `reference`, and to check that
            it prefers neither.
        teacher: the archived teacher itself, for the score `teacher`.
        stop_at: give it to `judge` too.
        public: texts that anybody could have read, to be searched for the outputs.
        journal: where answers are kept as they come; with them it goes on.

    Raises:
        UsageError: there is no such score, or `reference` or `teacher` without that model.
        CapabilityError: a model cannot do what a score needs.
    """
    wanted = [find_score(name) for name in scores]
    columns = {column for score in wanted for column in score.columns}
    if reference is not None:
        columns.add("reference_loglik")
    if "teacher_loglik" not in columns:
        teacher = None
    _require_able(suspect, reference, teacher, columns)
    items = _items(log, resamples, seed)
    parts: list[pa.Table] = []
    small = suspect.parameters is not None and suspect.parameters <= SMALL
    size = MANY if small and stop_at is None else FEW
    shown = console.progress("trace", len(items), "outputs")
    models = [model and model.fingerprint for model in (suspect, reference, teacher)]
    questions = [models, sorted(columns), size, [[item.row.id, *item.texts] for item in items]]
    with (
        contextlib.nullcontext(progress) if progress else shown as bar,
        contextlib.closing(ResumableAnswers(journal, questions)) as answered,
    ):
        for start in range(0, len(items), size):
            chunk = items[start : start + size]
            texts = [text for item in chunk for text in item.texts]
            if not answered.knows_next and not suspect.affords(texts):
                console.warn(f"the budget ends after {start:,} of {len(items):,} outputs")
                break
            rows = answered.next(
                lambda chunk=chunk: _asked(suspect, reference, teacher, chunk, columns).to_pylist()
            )
            parts.append(pa.Table.from_pylist(rows, TRANSCRIPT))
            bar.advance(len(chunk))
            if stop_at is not None and _reached(pa.concat_tables(parts), wanted[0], stop_at):
                break
    facts = log_metadata(log, resamples, public) | {"log_size": len(items)}
    transcript = pa.concat_tables(parts) if parts else TRANSCRIPT.empty_table()
    return transcript.replace_schema_metadata({FACTS: json.dumps(facts).encode()})


def _require_able(
    suspect: Suspect, reference: Suspect | None, teacher: Suspect | None, columns: set[str]
) -> None:
    if columns & {"loglik", "min_k"} and not suspect.can.logprobs:
        raise CapabilityError(
            f"{suspect.reference} tells no log-probabilities of a given text",
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
            raise CapabilityError(f"{model.reference} tells no log-probabilities of a given text")


def _items(log: Log, resamples: Resamples, seed: int) -> list[_Item]:
    """Delivered outputs that have resamples, in the order in which they are asked.

    The log keeps only the first of equal outputs to one prompt, so a resample that equals an earlier output
    is left out likewise.
    """
    earlier: dict[str, set[str]] = {}
    items = []
    for row in log.rows:
        before = earlier.setdefault(sha256_json(list(row.prompt)), set())
        fresh = [text for text in resamples.texts.get(row.id, ()) if text not in before]
        before.add(row.output)
        if fresh:
            items.append(_Item(row, fresh))
    return [items[place] for place in np.random.default_rng(seed).permutation(len(items))]


def _asked(
    suspect: Suspect,
    reference: Suspect | None,
    teacher: Suspect | None,
    items: Sequence[_Item],
    columns: set[str],
) -> pa.Table:
    """The rows of some items."""
    rows = [(item.row, draw, text) for item in items for draw, text in enumerate(item.texts)]
    prompts, texts = [row.prompt for row, _, _ in rows], [text for _, _, text in rows]
    absent: list[Any] = [None] * len(rows)
    scored = suspect.loglik(prompts, texts) if columns & {"loglik", "min_k"} else absent
    theirs, ours = (model.loglik(prompts, texts) if model else absent for model in (reference, teacher))
    shared = _overlaps(suspect, prompts, texts) if "overlap" in columns else absent
    return pa.table(
        {
            "id": [row.id for row, _, _ in rows],
            "account": [row.account for row, _, _ in rows],
            "draw": [draw for _, draw, _ in rows],
            "text": texts,
            "tokens": [one and one.tokens for one in scored],
            "loglik": [one and one.loglik for one in scored],
            "min_k": [one and min_k(one.token_logps) for one in scored],
            "reference_loglik": [one and one.loglik for one in theirs],
            "teacher_loglik": [one and one.loglik for one in ours],
            "teacher_tokens": [one and one.tokens for one in ours],
            "overlap": shared,
        },
        schema=TRANSCRIPT,
    )


def _overlaps(suspect: Suspect, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[float | None]:
    cut = [split_in_half(text) for text in texts]
    lengths = [len(rest) // CHARACTERS_PER_TOKEN + 4 for _, rest in cut]
    said = suspect.continuations(prompts, [beginning for beginning, _ in cut], lengths)
    return [
        None if one is None else ngram_overlap(one, rest) for one, (_, rest) in zip(said, cut, strict=True)
    ]


def _reached(transcript: pa.Table, score: RankingScore, stop_at: float) -> bool:
    scores_NK1 = usable_items(score_matrix(transcript, score).scores_NK1)
    if not len(scores_NK1):
        return False
    return rounds_until(log_e_process(scores_NK1), stop_at) is not None
