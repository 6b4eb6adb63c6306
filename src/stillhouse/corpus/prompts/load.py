"""Loads prompts from files, packages and generators.

Exact duplicates are dropped. A conversation that ends with an assistant message is a finished exchange, which
is imported instead of asked.
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
        limit: number of prompts to keep, drawn by ``seed`` from their ids; the order stays.

    Raises:
        CorpusError: the file is missing or malformed; the message names file and line.
        EmptyCorpusError: it contains no prompt.
        MissingExtraError: the package is not installed.
    """
    unique: dict[str, Prompt] = {}
    for where, record in _records(source):
        messages, tags = conversation(record, column, where)
        prompt = Prompt(sha256_json(messages)[:32], messages, source, tags)
        unique.setdefault(prompt.id, prompt)
    if not unique:
        raise EmptyCorpusError(f"{source} contains no prompt")
    selected = unique.keys() if limit is None else draw_ids(unique, limit, seed)
    return [prompt for id, prompt in unique.items() if id in selected]


def _records(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    if source.startswith(PREFIX):
        return generated_records(source)
    if source.startswith("package:"):
        name = source.removeprefix("package:")
        if name not in PACKAGES:
            raise CorpusError(
                f"there is no package of prompts named {name!r}",
                hint=f"Use {', '.join(f'package:{known}' for known in PACKAGES)}, or a file.",
            )
        return packaged_records(name)
    return read_records(Path(source))
