"""Rejection sampling: every kept answer is scored, and of each prompt the best ones are learned from.

As in STaR (Zelikman et al. 2022, arXiv:2203.14465) and RFT (Yuan et al. 2023,
arXiv:2308.01825): sample several answers, learn from verified ones. Rates are over the answers
that the filter kept, so a filter that drops repeated answers (`near_duplicates`) shifts them.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.corpus.schema import REJECT_SCHEMA, Row
from stillhouse.corpus.store.corpus import Corpus
from stillhouse.corpus.store.layout import journal_path, numbers, shard_path
from stillhouse.corpus.store.shards import write_shard
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
    """What was scored and selected. Means are over prompts, with intervals clustered by prompt."""

    scored: int
    selected: int
    """Training exchanges that later stages learn from."""
    held_out: int
    """Held-out exchanges, all of which go on: they measure, and are not learned from."""
    prompts: int
    solved: int
    """Prompts with at least one answer of `min_reward`."""
    share_selected: float
    """The yield: selected of scored."""
    k: int
    """Answers that were asked for each prompt."""
    pass_at_1: dict[str, Any] | None
    pass_at_k: dict[str, Any] | None
    """Over prompts with at least k answers left by the filter."""
    consensus_at_k: dict[str, Any] | None
    """Majority vote of all answers of a prompt (those with at least k)."""
    rejected: dict[str, int]
    failures: dict[str, int]
    """Verdicts that were not reached, by kind of verifier."""


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
    """Writes the selected rows of ``source`` (sorted by prompt, as the filter leaves them) to ``target``.

    Beside ``target`` it writes ``scores.parquet`` (:data:`SCORES`), and adds what it turns away to
    ``rejects``, after removing what an earlier selection added there.
    """
    turned_away = Corpus(rejects or target.directory.parent / "rejects", schema=REJECT_SCHEMA)
    forget_earlier(turned_away)
    tally = _Tally(settings, samples)
    scores: list[Row] = []

    def passing() -> Iterator[Row]:
        for _, rows in itertools.groupby(source.rows(), key=_prompt):
            group = list(rows)
            if group[0]["split"] == "held_out":
                tally.held_out += len(group)
                yield from group
                continue
            answers = [answer_of(row) for row in group]
            judged = verifiers.score(answers)
            scores.extend(_score_rows(group, judged, settings.min_reward))
            tally.add(judged, [verifiers.vote(answer) for answer in answers])
            chosen = choose(group, judged, settings)
            yield from (row for row in group if row["id"] in chosen)
            for row, score in zip(group, judged, strict=True):
                if row["id"] not in chosen:
                    reason = LOW_REWARD if score.value < settings.min_reward else SURPLUS
                    tally.rejected[reason] += 1
                    turned_away.append(row | {"reason": reason, "detail": score.detail})
            if on_scored:
                on_scored(len(group))

    try:
        target.replace(passing())
    finally:
        turned_away.seal()
    write_shard(target.directory.parent / "scores.parquet", scores, SCORES)
    return tally.summary(dict(verifiers.failures))


def read_pass_rates(selected: Corpus) -> dict[str, float]:
    """The pass rate of each prompt, by its id, that :func:`select_corpus` wrote beside ``selected``."""
    table = pq.read_table(selected.directory.parent / "scores.parquet", columns=["prompt_id", "pass_rate"])
    return dict(zip(table["prompt_id"].to_pylist(), table["pass_rate"].to_pylist(), strict=True))


def choose(rows: Sequence[Row], scores: Sequence[Score], settings: Select) -> set[str]:
    """Ids of the rows of one prompt that are learned from; the shorter first where the recipe says so."""
    good = [row for row, score in zip(rows, scores, strict=True) if score.value >= settings.min_reward]
    if settings.prefer == "shorter":
        good.sort(key=_length)
    return {row["id"] for row in good[: settings.per_prompt]}


def answer_of(row: Row) -> Answer:
    """The last turn of an exchange, its text and its thoughts apart, with the prompt's tags."""
    last = row["messages"][-1]
    return Answer(
        last["content"],
        last.get("reasoning_content"),
        json.loads(row["tags"]) if row.get("tags") else {},
        row["messages"][:-1],
    )


def forget_earlier(rejects: Corpus) -> None:
    """Removes the shards that an earlier selection added; the filter's are sealed before, and stay."""
    for number in numbers(rejects.directory):
        shard = shard_path(rejects.directory, number)
        if shard.exists():
            part = Corpus(rejects.directory, schema=REJECT_SCHEMA)._read(number, ["reason"])
            if any(row["reason"] not in (LOW_REWARD, SURPLUS) for row in part):
                continue
            shard.unlink()
        else:
            journal_path(rejects.directory, number).unlink()


def _prompt(row: Row) -> tuple[str, str]:
    return row["split"], row["prompt_id"]


def _length(row: Row) -> int:
    last = row["messages"][-1]
    return row["completion_tokens"] or len(last["content"]) + len(last.get("reasoning_content") or "")


def _score_rows(rows: Sequence[Row], scores: Sequence[Score], least: float) -> Iterable[Row]:
    rate = sum(score.value >= least for score in scores) / len(scores)
    for row, score in zip(rows, scores, strict=True):
        place = {"id": row["id"], "prompt_id": row["prompt_id"], "pass_rate": rate}
        yield place | {"reward": score.value, "failed": score.failed, "detail": score.detail}


class _Tally:
    """Counts while prompts go by."""

    def __init__(self, settings: Select, samples: int) -> None:
        self.least, self.k = settings.min_reward, samples
        self.held_out = self.scored = self.solved = 0
        self.rejected = {LOW_REWARD: 0, SURPLUS: 0}
        self._first: list[float] = []
        self._any: list[float] = []
        self._vote: list[float] = []

    def add(self, scores: Sequence[Score], votes: Sequence[str | None]) -> None:
        right = sum(score.value >= self.least for score in scores)
        self.scored += len(scores)
        self.solved += right > 0
        self._first.append(pass_at_k(len(scores), right, 1))
        if len(scores) >= self.k:
            self._any.append(pass_at_k(len(scores), right, self.k))
            self._vote.append(majority(votes, [score.value for score in scores], self.least))

    def summary(self, failures: dict[str, int]) -> SelectSummary:
        selected = self.scored - sum(self.rejected.values())
        return SelectSummary(
            scored=self.scored,
            selected=selected,
            held_out=self.held_out,
            prompts=len(self._first),
            solved=self.solved,
            share_selected=selected / self.scored if self.scored else 0.0,
            k=self.k,
            pass_at_1=_estimate(self._first),
            pass_at_k=_estimate(self._any),
            consensus_at_k=_estimate(self._vote),
            rejected=self.rejected,
            failures=failures,
        )


def _estimate(values: Sequence[float]) -> dict[str, Any] | None:
    found: Mean | None = mean_over_prompts(values) if values else None
    return None if found is None else asdict(found)
