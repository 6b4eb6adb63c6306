"""Prompts inside this package.

``mmlu``: 281 development questions of MMLU over 57 subjects (Hendrycks et al. 2021; mmlu.LICENSE.txt), with
the letter of the right answer.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from stillhouse.corpus.prompts.files import Record, read_records

PACKAGES = ("mmlu",)


def packaged_file(name: str) -> Path:
    """The JSON lines of an entry in :data:`PACKAGES`."""
    assert name in PACKAGES, name
    return Path(__file__).with_name(f"{name}.jsonl")


def packaged_records(name: str) -> Iterator[Record]:
    """The questions of an entry in :data:`PACKAGES`, each with its location."""
    return read_records(packaged_file(name))
