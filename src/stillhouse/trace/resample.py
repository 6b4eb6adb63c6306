"""Fresh outputs of the archived teacher for the prompts and settings of a delivered log.

They are the comparison for the delivered outputs, so keep them secret until the suspect has been queried. A
file of resamples is written once; a stopped run resumes from a journal beside it.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.console import console
from stillhouse.corpus.ngrams import words
from stillhouse.errors import CapabilityError, CorpusError, IntegrityError, StillhouseError
from stillhouse.files import atomic_path
from stillhouse.hashing import seed_from
from stillhouse.journal import Journal, read_journal
from stillhouse.models import Model, Reply, Request, open_model
from stillhouse.trace.delivered_log import Delivered, Log
from stillhouse.trace.plan import Radioactivity
from stillhouse.watermark import Mark, account_key

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("draw", pa.int32()),
        ("text", pa.string()),
        ("finish_reason", pa.string()),
        ("temperature", pa.float64()),
        ("top_p", pa.float64()),
        ("top_k", pa.int32()),
        ("min_p", pa.float64()),
        ("max_tokens", pa.int32()),
        ("seed", pa.int64()),
        ("teacher", pa.string()),
        ("teacher_hash", pa.string()),
    ]
)
"""One fresh output: the id of its row in the log, its number 1 … K, and how it was drawn."""
MADE_FROM = b"resampled"
"""Key of the file's metadata: what it was made from, JSON."""
BATCH = 256
"""Outputs drawn between two writes to the journal."""
PUBLIC_RUN = 13
"""Consecutive words that make a delivered output count as public."""


@dataclass(frozen=True)
class Resamples:
    """Fresh outputs, by the id of the delivered one."""

    texts: dict[str, list[str]]
    teacher_hashes: tuple[str, ...]
    seed: int
    failed: int
    """Draws that the teacher did not answer."""
    marks: tuple[dict[str, Any], ...] = ()
    """The watermarks that they carry (:attr:`~stillhouse.watermark.Mark.public_parameters`), if any."""


@dataclass(frozen=True)
class LogMark:
    """The watermark that every output of a log was drawn with."""

    mark: Mark
    by_account: bool = False
    """Its key is a master key, from which each account's key is derived."""

    def of(self, row: Delivered) -> Mark:
        """The mark of one output.

        Raises:
            CorpusError: each account has a key of its own, and the row has no account.
        """
        if not self.by_account:
            return self.mark
        if row.account is None:
            raise CorpusError(
                f"the log's row {row.id!r} names no account, and each account has its own key",
                hint="Add a column `account`, or give the one key that marked all rows.",
            )
        return replace(self.mark, key=account_key(self.mark.key, row.account))

    def public_parameters(self, log: Log) -> list[dict[str, Any]]:
        """All marks of a log, each once; JSON-able."""
        one_row_each = {row.account: row for row in log.rows}.values()
        by_key = {parameters["key"]: parameters for parameters in map(self._parameters, one_row_each)}
        return [by_key[key] for key in sorted(by_key)]

    def _parameters(self, row: Delivered) -> dict[str, Any]:
        return self.of(row).public_parameters


def resample(
    teacher: str,
    log: Log,
    draws: int,
    seed: int,
    out: str | Path,
    *,
    mark: LogMark | None = None,
    allow_other_teacher: bool = False,
) -> Resamples:
    """Draws ``draws`` outputs for every row of ``log`` and writes them to ``out`` (parquet).

    Draws that are already in ``out``, or in a whole batch of a killed run's journal, are not repeated.

    Args:
        teacher: reference of the archived teacher.
        seed: the seed of each draw is derived from it, the row's id and the draw's number.
        mark: the watermark that the log was drawn with; the resamples then carry it too.
        allow_other_teacher: draw even if a model with another fingerprint wrote the log. The judge then
            reports a broken assumption.

    Raises:
        IntegrityError: another teacher wrote the log.
        CorpusError: ``out`` was made from something else, or rows share an id.
        CapabilityError: the teacher's answers cannot be marked.
    """
    assert draws > 0
    _require_unique_ids(log)
    out = Path(out)
    model = open_model(teacher, seed=seed)
    try:
        if not allow_other_teacher:
            require_teacher(log, model)
        if mark and not model.can.watermark:
            raise CapabilityError(
                f"the answers of {teacher} cannot be watermarked",
                hint="Only the sampler for safetensors weights applies marks; name those of the teacher.",
            )
        made_from = {"teacher_hash": model.fingerprint, "log": log.hash, "draws": draws, "seed": seed}
        made_from |= {"marks": mark.public_parameters(log)} if mark else {}
        if not out.exists():
            _draw(model, log, made_from, out, mark)
    finally:
        asyncio.run(model.close())
    resamples = read_resamples(out, {"marks": None} | made_from)
    if resamples.failed:
        console.warn(f"{resamples.failed:,} draws got no answer; their outputs have fewer resamples")
    return resamples


def read_resamples(path: str | Path, made_from: dict[str, Any] | None = None) -> Resamples:
    """Reads a file that :func:`resample` wrote.

    Args:
        made_from: what it must have been made from; None accepts anything.

    Raises:
        CorpusError: the file does not exist, is damaged, or was made from something else.
    """
    try:
        table = pq.read_table(path)
        recorded = _read_made_from(table.schema)
        rows = (
            table.select(["id", "draw", "text", "teacher_hash"]).sort_by([("draw", "ascending")]).to_pylist()
        )
    except (OSError, pa.ArrowException, LookupError, ValueError) as error:
        raise CorpusError(f"{path} is not a file of resamples: {error}"[:300]) from error
    expected = made_from or {}
    if differing := [key for key in expected if recorded.get(key) != expected[key]]:
        details = "; ".join(f"{key} {recorded.get(key)} instead of {expected[key]}" for key in differing)
        raise CorpusError(
            f"{path} holds other resamples: {details}",
            hint="Give another file with --out; resamples are never overwritten.",
        )
    texts: dict[str, list[str]] = {}
    for row in rows:
        texts.setdefault(row["id"], []).append(row["text"])
    hashes = tuple(sorted({row["teacher_hash"] for row in rows}))
    marks = tuple(recorded.get("marks", ()))
    return Resamples(texts, hashes, recorded["seed"], recorded.get("failed", 0), marks)


def read_marks(path: str | Path) -> tuple[dict[str, Any], ...]:
    """Reads only the watermarks that a file of resamples carries.

    Raises:
        CorpusError: the file does not exist or holds no resamples.
    """
    try:
        return tuple(_read_made_from(pq.read_schema(path)).get("marks", ()))
    except (OSError, pa.ArrowException, LookupError, ValueError) as error:
        raise CorpusError(f"{path} is not a file of resamples: {error}"[:300]) from error


def _read_made_from(schema: pa.Schema) -> dict[str, Any]:
    return json.loads((schema.metadata or {})[MADE_FROM])


def planned_mark(section: Radioactivity, key: bytes) -> Mark:
    """The mark of the log according to the plan."""
    return Mark(key, section.scheme, section.window, section.gamma, section.delta, section.depth)


def require_teacher(log: Log, model: Model) -> None:
    """Requires the teacher's fingerprint to be the one in the log; a log without any is accepted.

    Raises:
        IntegrityError: they differ; names both.
    """
    others = {digest for digest in log.teacher_hashes if digest is not None and digest != model.fingerprint}
    if others:
        raise IntegrityError(
            f"the log was written by {', '.join(sorted(others))}, "
            f"and {model.reference} is {model.fingerprint}",
            hint="Name the archived version of the teacher. With --allow-other-teacher this one is used, and "
            "the report says so.",
        )


def log_metadata(log: Log, resamples: Resamples, public: Iterable[str] | None = None) -> dict[str, Any]:
    """Facts about log and resamples that the judge cannot read from a transcript; JSON-able.

    Args:
        public: texts that anybody could have read; counts the outputs that occur in them.
    """
    return {
        "left_out": log.left_out,
        "log_teachers": sorted(digest or "" for digest in log.teacher_hashes) or [""],
        "resample_teachers": list(resamples.teacher_hashes),
        "resample_marks": list(resamples.marks),
        "public": None if public is None else count_public([row.output for row in log.rows], public),
    }


def count_public(outputs: Iterable[str], texts: Iterable[str], run: int = PUBLIC_RUN) -> dict[str, int]:
    """Counts outputs that share ``run`` consecutive words with any text, ignoring case and punctuation."""
    outputs_by_run: dict[tuple[str, ...], set[int]] = {}
    count = 0
    for number, output in enumerate(outputs):
        count += 1
        for gram in _runs(words(output), run):
            outputs_by_run.setdefault(gram, set()).add(number)
    public: set[int] = set()
    read = 0
    for text in texts:
        read += 1
        for gram in _runs(words(text), run):
            public |= outputs_by_run.get(gram, set())
    return {"found": len(public), "outputs": count, "texts": read, "words": run}


def _runs(text_words: list[str], run: int) -> Iterator[tuple[str, ...]]:
    return (tuple(text_words[i : i + run]) for i in range(len(text_words) - run + 1))


def _draw(model: Model, log: Log, made_from: dict[str, Any], out: Path, mark: LogMark | None) -> None:
    """Draws what the journal does not hold yet, then writes the file and removes the journal."""
    journal_path = out.with_name(f"{out.name}.journal")
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = list(read_journal(journal_path))
    if lines and lines[0] != made_from:
        raise CorpusError(
            f"{journal_path} belongs to another run (teacher, log, draws or seed differ)",
            hint="Give another file with --out, or remove this journal.",
        )
    journal = Journal(journal_path)
    try:
        if not lines:
            journal.append(made_from)
        done = {(line["id"], line["draw"]): line for line in lines[1:]}
        asyncio.run(_draw_missing(model, log, made_from, journal, done, mark))
    finally:
        journal.close()
    order = {row.id: number for number, row in enumerate(log.rows)}
    rows = sorted(done.values(), key=lambda line: (order[line["id"]], line["draw"]))
    answered = [row for row in rows if row["text"] is not None]
    metadata = made_from | {"failed": len(rows) - len(answered)}
    schema = SCHEMA.with_metadata({MADE_FROM: json.dumps(metadata).encode()})
    with atomic_path(out) as temporary:
        pq.write_table(pa.Table.from_pylist(answered, schema=schema), temporary, compression="zstd")
    journal_path.unlink()


async def _draw_missing(
    model: Model,
    log: Log,
    made_from: dict[str, Any],
    journal: Journal,
    done: dict[tuple[str, int], dict[str, Any]],
    mark: LogMark | None,
) -> None:
    """Draws the outputs that are not ``done`` yet; adds them to ``done`` and to the journal.

    A batch that a killed run journalled in part is drawn again as a whole: the composition of a batch moves
    the last bits of its probabilities, so a shifted batch could draw other tokens.
    """
    planned = [(row, draw) for row in log.rows for draw in range(1, made_from["draws"] + 1)]
    batches = [planned[start : start + BATCH] for start in range(0, len(planned), BATCH)]
    missing = [batch for batch in batches if any((row.id, draw) not in done for row, draw in batch)]
    remaining = sum(map(len, missing))
    with console.progress("resample", len(planned), "outputs", done=len(planned) - remaining) as progress:
        for batch in missing:
            requests = [_request(row, draw, made_from["seed"], mark) for row, draw in batch]
            replies = await model.generate(requests)
            for (row, draw), request, reply in zip(batch, requests, replies, strict=True):
                line = _line(model, row, draw, request, reply)
                journal.append(line)
                done[row.id, draw] = line
            progress.advance(len(batch))


def _request(row: Delivered, draw: int, seed: int, mark: LogMark | None) -> Request:
    sampling = replace(row.sampling, seed=seed_from(f"resample {seed} {row.id} {draw}"))
    return Request(f"{row.id}/{draw}", list(row.prompt), sampling, mark.of(row) if mark else None)


def _line(
    model: Model, row: Delivered, draw: int, request: Request, reply: Reply | StillhouseError
) -> dict[str, Any]:
    """A row of the file; its text is None if the teacher failed."""
    failed = isinstance(reply, StillhouseError)
    settings = asdict(request.sampling)
    return {
        "id": row.id,
        "draw": draw,
        "text": None if failed else reply.text,
        "finish_reason": str(reply) if failed else reply.finish_reason,
        **{name: settings[name] for name in ("temperature", "top_p", "top_k", "min_p", "max_tokens", "seed")},
        "teacher": model.reference,
        "teacher_hash": model.fingerprint,
    }


def _require_unique_ids(log: Log) -> None:
    ids = [row.id for row in log.rows]
    if len(set(ids)) < len(ids):
        repeated = next(id for n, id in enumerate(ids) if id in ids[:n])
        raise CorpusError(
            f"several rows of the log have the id {repeated!r}",
            hint="Give each row an id of its own, or none.",
        )
