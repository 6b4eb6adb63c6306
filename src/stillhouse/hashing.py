"""SHA-256 of files, text and JSON, and seeds derived from text."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any


def sha256_bytes(data: bytes) -> str:
    """The SHA-256 of ``data``, as 64 lowercase hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_text(text: str) -> str:
    """The SHA-256 of ``text`` in UTF-8; lone surrogates are allowed."""
    return sha256_bytes(text.encode("utf-8", "surrogatepass"))


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no spaces, so that equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def seed_from(text: str) -> int:
    """A 31-bit seed derived from ``text``, e.g. a description of what is sampled."""
    return int(sha256_text(text)[:8], 16) & 0x7FFFFFFF


def seed_for_item(seed: int, name: str) -> int:
    """A 31-bit seed for one item of a seeded run, whatever the order of the items.

    Not :func:`seed_from`, which takes other bits of the hash: recorded runs must draw the same again.
    """
    return int(sha256_text(f"{seed}:{name}")[:8], 16) >> 1


def sha256_json(value: Any) -> str:
    """The SHA-256 of :func:`canonical_json` of ``value``."""
    return sha256_text(canonical_json(value))


def sha256_file(path: str | Path) -> str:
    """The SHA-256 of a file's bytes, read in blocks."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
