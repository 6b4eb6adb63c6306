"""The delivered log: a teacher's outputs, the accounts that received them, and the sampling settings.

A log is a parquet file, or a directory of them, with the columns of a corpus
(:mod:`stillhouse.corpus.schema`: `messages` whose last turn is the output, the sampling, `teacher_hash`), and
`account` if an API knows it. Shorter forms are read too: `prompt` and `output` as text instead of `messages`,
JSON lines with the same names, and an author's drawn texts (:mod:`.rephrasings`), whose published versions
are the outputs.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from stillhouse.errors import CorpusError
from stillhouse.hashing import sha256_file, sha256_json
from stillhouse.models import Message, Sampling

SHORTEST = 20
"""Fewest characters of an output; chance repeats shorter ones too often."""


@dataclass(frozen=True)
class Delivered:
    """One output that a teacher gave to an account."""

    id: str
    prompt: tuple[Message, ...]
    """The turns before the output; empty for a text without a prompt."""
    output: str
    sampling: Sampling
    account: str | None = None
    teacher_hash: str | None = None


@dataclass(frozen=True)
class Log:
    """Delivered outputs that can be tested."""

    rows: tuple[Delivered, ...]
    left_out: dict[str, int]
    """Outputs that cannot be tested, counted by reason."""
    hash: str
    """SHA-256 over the file or files."""

    @property
    def teacher_hashes(self) -> set[str | None]:
        return {row.teacher_hash for row in self.rows}


def read_log(path: str | Path, accounts: Sequence[str] = ()) -> Log:
    """Reads a log; leaves out and counts duplicates, short outputs and outputs drawn without randomness.

    Args:
        accounts: read only their outputs; empty reads all.

    Raises:
        CorpusError: the log does not exist, is damaged, lacks columns, or has no row that can be tested; says
            which, and counts the reasons.
    """
    files = log_files(Path(path))
    rows, reasons, seen = [], Counter(), set()
    for number, raw in enumerate(_raw_rows(files)):
        row = _parse_row(raw, number, path)
        if accounts and row.account not in accounts:
            reasons["another account's"] += 1
        elif len(row.output.strip()) < SHORTEST:
            reasons[f"shorter than {SHORTEST} characters"] += 1
        elif row.sampling.temperature == 0 or row.sampling.top_k == 1:
            reasons["temperature 0: the same prompt always gives the same output"] += 1
        elif (key := sha256_json([row.prompt, row.output])) in seen:
            reasons["a repetition of an earlier row"] += 1
        else:
            seen.add(key)
            rows.append(row)
    if not rows:
        counts = "; ".join(f"{count:,} {reason}" for reason, count in reasons.items()) or "it has no rows"
        raise CorpusError(f"{path}: no output in this log can be tested ({counts})")
    digest = sha256_file(files[0]) if len(files) == 1 else sha256_json([sha256_file(file) for file in files])
    return Log(tuple(rows), dict(reasons), digest)


def log_files(path: Path) -> list[Path]:
    """The files of a log, in the order in which they are read and hashed.

    Raises:
        CorpusError: there are none.
    """
    if path.is_dir():
        files = sorted(path.glob("*.parquet")) or sorted((path / "corpus").glob("*.parquet"))
        if not files:
            raise CorpusError(f"{path}: no parquet file in this directory")
        return files
    if not path.exists():
        raise CorpusError(f"{path}: no such log")
    return [path]


def _raw_rows(files: Iterable[Path]) -> Iterable[dict[str, Any]]:
    for file in files:
        try:
            if file.suffix == ".parquet":
                for batch in pq.ParquetFile(file).iter_batches(1024):
                    yield from batch.to_pylist()
            else:
                for line in file.read_text("utf-8").splitlines():
                    if line.strip():
                        yield json.loads(line)
        except (OSError, pa.ArrowException, ValueError) as error:
            raise CorpusError(f"{file}: not a readable log: {error}") from error


def _published_version(raw: dict[str, Any]) -> Any:
    versions, index = raw["versions"], raw.get("published")
    if not isinstance(versions, list) or not isinstance(index, int) or not 0 <= index < len(versions):
        return None
    return versions[index]


def _parse_row(raw: dict[str, Any], number: int, path: str | Path) -> Delivered:
    if not isinstance(raw, dict):
        raise CorpusError(f"{path}: row {number} is not an object")
    messages = raw.get("messages")
    if "versions" in raw:  # an author's text, of which one version was published
        prompt, output = [], _published_version(raw)
        if output is None:
            raise CorpusError(
                f"{path}: row {number} has versions, and no choice of the published one: this file was not "
                "made by `still trace draw`",
                hint="The versions must be drawn before one of them is published: still trace draw "
                f"{path} --key author.key. Then pass the file that it writes (texts.jsonl).",
            )
    elif messages:
        turns = [{key: text for key, text in turn.items() if text is not None} for turn in messages]
        prompt, output = turns[:-1], turns[-1].get("content")
    else:
        question, output = raw.get("prompt"), raw.get("output")
        prompt = [{"role": "user", "content": question}] if question else []
    if not isinstance(output, str):
        raise CorpusError(
            f"{path}: row {number} has no output",
            hint="A log has the columns `messages`, or `prompt` and `output`.",
        )
    sampling = {
        name: raw[name]
        for name in ("temperature", "top_p", "top_k", "max_tokens", "min_p")
        if raw.get(name) is not None
    }
    return Delivered(
        id=str(raw.get("id") or sha256_json([number, output])[:32]),
        prompt=tuple(prompt),
        output=output,
        sampling=Sampling(**sampling),
        account=raw.get("account"),
        teacher_hash=raw.get("teacher_hash"),
    )
