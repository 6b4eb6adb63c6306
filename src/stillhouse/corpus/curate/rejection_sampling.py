"""Rejection sampling: scores every kept answer and selects the best of each prompt for training.

As in STaR (Zelikman et al. 2022, arXiv:2203.14465) and RFT (Yuan et al. 2023, arXiv:2308.01825): sample
several answers, train on verified ones. Rates are over the answers that the filter kept, so a filter that
drops repeated answers (`near_duplicates`) shifts them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.corpus.schema import REJECT_SCHEMA, Row
from stillhouse.corpus.store.corpus import Corpus
from stillhouse.corpus.store.layout import journal_path, numbers, shard_path
from stillhouse.corpus.store.shards import read_shard, write_shard
from stillhouse.recipe import Select
from stillhouse.stats import Mean, majority, mean_over_prompts, pass_at_k
from stillhouse.verifiers import Answer, Score, Verifiers

LOW_REWARD = "reward too low"
SURPLUS = "surplus of a prompt"
SCORES = pa.schema(
    [
        ("id", pa.string()),
        ("prompt_id", pa.string()),
        ("reward", pa.float64()),
        ("pass_rate", pa.float64()),
        ("failed", pa.bool_()),
        ("detail", pa.string()),
    ]
)
"""`pass_rate`: the share of the prompt's scored answers with at least `min_reward`, for a curriculum."""


@dataclass(frozen=True)
class SelectSummary:
    """Counts and rates of a selection. Means are over prompts, with intervals clustered by prompt."""

    scored: int
    selected: int
    """Training exchanges that later stages use."""
    held_out: int
    """Held-out exchanges. All are kept, since they measure and are not trained on."""
    prompts: int
    solved: int
    """Prompts with at least one answer of `min_reward`."""
    share_selected: float
    """The yield: selected / scored."""
    k: int
    """Answers that the recipe asks for, for each prompt."""
    pass_at_1: dict[str, Any] | None
    pass_at_k: dict[str, Any] | None
    """Over prompts of which the filter left at least k answers."""
    consensus_at_k: dict[str, Any] | None
    """Majority vote of all answers to a prompt, over the same prompts."""
    rejected: dict[str, int]
    failures: dict[str, int]
    """Answers that a verifier could not score, by kind of verifier."""


def select_corpus(
    source: Corpus,
    target: Corpus,
    settings: Select,
    verifiers: Verifiers,
    *,
    samples: int,
    rejects: Path | None = None,
    on_scored: Any = None,
) -> SelectSummary:
    """Replaces ``target`` with the selected rows of ``source`` (sorted by prompt, as the filter leaves them).

    Writes ``scores.parquet`` (:data:`SCORES`) beside ``target``, and replaces what an earlier selection added
    to ``rejects``.
    """
    rejected = Corpus(rejects or target.directory.parent / "rejects", schema=REJECT_SCHEMA)
    remove_rejects(rejected, {LOW_REWARD, SURPLUS})
    tally = _Tally(settings, samples)
    score_rows: list[Row] = []

    def passing() -> Iterator[Row]:
        for _, rows in itertools.groupby(source.rows(), key=_prompt):
            group = list(rows)
            if group[0]["split"] == "held_out":
                tally.held_out += len(group)
                yield from group
                continue
            answers = [answer_of(row) for row in group]
            group_scores = verifiers.score(answers)
            score_rows.extend(_score_rows(group, group_scores, settings.min_reward))
            tally.add(group_scores, [verifiers.vote(answer) for answer in answers])
            selected = select_ids(group, group_scores, settings)
            yield from (row for row in group if row["id"] in selected)
            for row, score in zip(group, group_scores, strict=True):
                if row["id"] not in selected:
                    reason = LOW_REWARD if score.value < settings.min_reward else SURPLUS
                    tally.rejected[reason] += 1
                    rejected.append(row | {"reason": reason, "detail": score.detail})
            if on_scored:
                on_scored(len(group))

    try:
        target.replace(passing())
    finally:
        rejected.seal()
    write_shard(target.directory.parent / "scores.parquet", score_rows, SCORES)
    return tally.summary(dict(verifiers.failures))


def read_pass_rates(selected: Corpus) -> dict[str, float]:
    """The pass rate of each prompt, by its id, that :func:`select_corpus` wrote beside ``selected``."""
    table = pq.read_table(selected.directory.parent / "scores.parquet", columns=["prompt_id", "pass_rate"])
    return dict(zip(table["prompt_id"].to_pylist(), table["pass_rate"].to_pylist(), strict=True))


def select_ids(rows: Sequence[Row], scores: Sequence[Score], settings: Select) -> set[str]:
    """Ids of the selected rows of one prompt; the recipe decides whether shorter answers come first."""
    good = [row for row, score in zip(rows, scores, strict=True) if score.value >= settings.min_reward]
    if settings.prefer == "shorter":
        good.sort(key=_length)
    return {row["id"] for row in good[: settings.per_prompt]}


def answer_of(row: Row) -> Answer:
    """The last message of a row as an answer, text and reasoning apart, with the prompt's tags."""
    last = row["messages"][-1]
    return Answer(
        last["content"],
        last.get("reasoning_content"),
        json.loads(row["tags"]) if row.get("tags") else {},
        row["messages"][:-1],
    )


def remove_rejects(rejects: Corpus, reasons: Set[str]) -> None:
    """Removes the shards that an earlier stage added for ``reasons``; those of other stages stay."""
    for number in numbers(rejects.directory):
        shard = shard_path(rejects.directory, number)
        if shard.exists():
            if not {row["reason"] for row in read_shard(shard, REJECT_SCHEMA, ["reason"])} <= reasons:
                continue
            shard.unlink()
        else:
            journal_path(rejects.directory, number).unlink()


def _prompt(row: Row) -> tuple[str, str]:
    return row["split"], row["prompt_id"]


def _length(row: Row) -> int:
    last = row["messages"][-1]
    return row["completion_tokens"] or len(last["content"]) + len(last.get("reasoning_content") or "")


def _score_rows(rows: Sequence[Row], scores: Sequence[Score], min_reward: float) -> Iterable[Row]:
    rate = sum(score.value >= min_reward for score in scores) / len(scores)
    for row, score in zip(rows, scores, strict=True):
        ids = {"id": row["id"], "prompt_id": row["prompt_id"], "pass_rate": rate}
        yield ids | {"reward": score.value, "failed": score.failed, "detail": score.detail}


class _Tally:
    """Counts and rates, updated one prompt at a time."""

    def __init__(self, settings: Select, samples: int) -> None:
        self.min_reward, self.k = settings.min_reward, samples
        self.held_out = self.scored = self.solved = 0
        self.rejected = {LOW_REWARD: 0, SURPLUS: 0}
        self._pass_at_1: list[float] = []
        self._pass_at_k: list[float] = []
        self._consensus: list[float] = []

    def add(self, scores: Sequence[Score], votes: Sequence[str | None]) -> None:
        correct = sum(score.value >= self.min_reward for score in scores)
        self.scored += len(scores)
        self.solved += correct > 0
        self._pass_at_1.append(pass_at_k(len(scores), correct, 1))
        if len(scores) >= self.k:
            self._pass_at_k.append(pass_at_k(len(scores), correct, self.k))
            self._consensus.append(majority(votes, [score.value for score in scores], self.min_reward))

    def summary(self, failures: dict[str, int]) -> SelectSummary:
        selected = self.scored - sum(self.rejected.values())
        return SelectSummary(
            scored=self.scored,
            selected=selected,
            held_out=self.held_out,
            prompts=len(self._pass_at_1),
            solved=self.solved,
            share_selected=selected / self.scored if self.scored else 0.0,
            k=self.k,
            pass_at_1=_estimate(self._pass_at_1),
            pass_at_k=_estimate(self._pass_at_k),
            consensus_at_k=_estimate(self._consensus),
            rejected=self.rejected,
            failures=failures,
        )


def _estimate(values: Sequence[float]) -> dict[str, Any] | None:
    mean: Mean | None = mean_over_prompts(values) if values else None
    return None if mean is None else asdict(mean)
