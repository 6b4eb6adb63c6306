"""Real text for the zoo: dictionaries and word lists from Debian packages, cut into documents.

    apt-get download dict-gcide dict-foldoc dict-jargon wordnet-base
    for d in *.deb; do dpkg -x $d ROOT; done

gcide (GPL-3), foldoc (GFDL), the Jargon File (public domain), WordNet's glosses (its own free licence).
"""

from __future__ import annotations

import gzip
import re
from collections.abc import Iterator
from pathlib import Path

PACKAGES = "dict-gcide dict-foldoc dict-jargon wordnet-base"
SHORTEST, LONGEST = 150, 900  # characters of a document


def documents(root: Path) -> dict[str, list[str]]:
    """Documents of each source, in the order of the files.

    Raises:
        SystemExit: the packages are missing; says how to get them.
    """
    dictionaries = root / "usr/share/dictd"
    wordnet = root / "usr/share/wordnet"
    if not dictionaries.is_dir() or not wordnet.is_dir():
        raise SystemExit(
            f"no dictionaries in {root}: apt-get download {PACKAGES} and dpkg -x each of them to {root}"
        )
    documents_by_source = {}
    for name in ("gcide", "foldoc", "jargon"):
        with gzip.open(dictionaries / f"{name}.dict.dz", "rt", encoding="utf-8", errors="replace") as file:
            documents_by_source[name] = list(_joined(_paragraphs(file.read())))
    documents_by_source["wordnet"] = list(_joined(_glosses(wordnet / "data.noun")))
    return documents_by_source


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", text):
        flat = " ".join(paragraph.split())
        if len(flat) > 40:
            yield flat[:LONGEST]


def _glosses(path: Path) -> Iterator[str]:
    for line in path.read_text("utf-8").splitlines():
        if line[0] != " " and " | " in line:
            head, gloss = line.split(" | ", 1)
            yield f"{head.split()[4].replace('_', ' ')}: {gloss.strip()}."


def _joined(paragraphs: Iterator[str]) -> Iterator[str]:
    """Joins neighbouring paragraphs until a document is long enough."""
    document = ""
    for paragraph in paragraphs:
        document = f"{document} {paragraph}".strip()
        if len(document) >= SHORTEST:
            yield document[:LONGEST]
            document = ""
