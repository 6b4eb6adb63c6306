"""Prompts: what the teacher is asked, and finished exchanges that need no asking.

A file becomes a list of prompts, exact duplicates dropped. A conversation that already
ends with an assistant's turn is a finished exchange, and is imported as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from stillhouse.corpus.prompts.columns import conversation
from stillhouse.corpus.prompts.files import read_records
from stillhouse.corpus.prompts.packaged import PACKAGES, packaged_records
from stillhouse.corpus.prompts.prompt import Prompt
from stillhouse.corpus.prompts.reasoning_gym import PREFIX, generated_records
from stillhouse.corpus.prompts.split import draw_ids
from stillhouse.errors import CorpusError, EmptyCorpusError
from stillhouse.hashing import sha256_json


def load_prompts(
    source: str, *, column: str | None = None, limit: int | None = None, seed: int = 0
) -> list[Prompt]:
    """Reads prompts from ``package:mmlu``, ``reasoning_gym:NAME?size=200`` or a file.

    Files are .jsonl, .json, .parquet, .csv or .txt.

    Args:
        column: column that holds the prompt (default: see :mod:`~stillhouse.corpus.prompts.columns`).
        limit: keep this many, drawn by ``seed`` from the prompts' ids; their order stays the file's.

    Raises:
        CorpusError: the file is missing or malformed; the message names file and line.
        EmptyCorpusError: it holds no prompt.
        MissingExtraError: the package is not installed.
    """
    unique: dict[str, Prompt] = {}
    for where, record in _records(source):
        messages, tags = conversation(record, column, where)
        prompt = Prompt(sha256_json(messages)[:32], messages, source, tags)
        unique.setdefault(prompt.id, prompt)
    if not unique:
        raise EmptyCorpusError(f"{source} holds no prompt")
    chosen = unique.keys() if limit is None else draw_ids(unique, limit, seed)
    return [prompt for id, prompt in unique.items() if id in chosen]


def _records(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if source.startswith(PREFIX):
        return generated_records(source)
    if source.startswith("package:"):
        name = source.removeprefix("package:")
        if name not in PACKAGES:
            raise CorpusError(
                f"no package of prompts is called {name!r}",
                hint=f"There is {', '.join(f'package:{known}' for known in PACKAGES)}; or name a file.",
            )
        return packaged_records(name)
    return read_records(Path(source))
