"""Answers that say nearly the same: MinHash finds candidates, exact sets decide.

Similarity is the Jaccard index of two answers' sets of word 3-grams. MinHash signatures
in bands (rensa; Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.4) find
candidates; each is then compared exactly, so nothing is dropped that is less similar
than the threshold, and a pair at the threshold is missed with a chance of at most
:data:`MISS`. Short answers ("Yes.", "The answer is B.") to different prompts are no
duplicates of each other: below :data:`SHORT_WORDS` words only the same words to the same
prompt count, and below :data:`SHINGLE_WORDS` only the same characters.

The index grows with the answers it holds: about 2 kB in memory each, and their sets in a
temporary file.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from rensa import RMinHash, RMinHashLSH  # pyright: ignore[reportAttributeAccessIssue]

from stillhouse.corpus.ngrams import words

SHINGLE_WORDS = 3
SHORT_WORDS = 20
PERMUTATIONS = 128
MISS = 1e-3
"""Chance that a pair exactly at the threshold is not found."""


def shingles(text: str) -> set[str]:
    """The word 3-grams of a text of at least 3 words."""
    found = words(text)
    return {" ".join(found[i : i + SHINGLE_WORDS]) for i in range(len(found) - SHINGLE_WORDS + 1)}


def rows_per_band(threshold: float) -> int:
    """The most selective banding that misses a pair at ``threshold`` with a chance of at most ``MISS``.

    With r rows a band and b = PERMUTATIONS / r bands, a pair of similarity s becomes a
    candidate with probability 1 - (1 - s^r)^b.
    """
    for rows in (32, 16, 8, 4, 2):
        if (1 - threshold**rows) ** (PERMUTATIONS // rows) <= MISS:
            return rows
    return 1


class NearDuplicates:
    """The answers seen so far; close it to remove its temporary file."""

    def __init__(self, threshold: float, directory: Path) -> None:
        self.threshold = threshold
        self._lsh = RMinHashLSH(
            threshold=threshold, num_perm=PERMUTATIONS, num_bands=PERMUTATIONS // rows_per_band(threshold)
        )
        self._sets = tempfile.TemporaryFile(dir=directory)  # noqa: SIM115  closed by close()
        self._ids: list[str] = []
        self._offsets = [0]
        self._short: dict[tuple[str, str], str] = {}

    def find_or_add(self, id: str, prompt_id: str, answer: str) -> str | None:
        """The id of an earlier answer that this one nearly repeats; else None, and this one is added."""
        found = words(answer)
        if len(found) < SHORT_WORDS:
            # "5" and "-5", or two emoji, have the same words and are two answers
            said = " ".join(found) if len(found) >= SHINGLE_WORDS else answer.strip()
            earlier = self._short.setdefault((prompt_id, said), id)
            return None if earlier == id else earlier
        tokens = [sorted(shingles(answer))]
        signature = RMinHash.from_token_sets(tokens, num_perm=PERMUTATIONS, seed=0)[0]
        hashes = np.unique(np.asarray(RMinHash.hash_token_sets(tokens)[0], dtype=np.uint64))
        for key in sorted(self._lsh.query(signature)):
            other = self._load(key)
            shared = np.intersect1d(hashes, other, assume_unique=True).size
            if shared >= self.threshold * (hashes.size + other.size - shared):
                return self._ids[key]
        self._lsh.insert(len(self._ids), signature)
        self._store(id, hashes)
        return None

    def close(self) -> None:
        """Removes the temporary file."""
        self._sets.close()

    def _store(self, id: str, hashes: np.ndarray) -> None:
        self._sets.seek(0, 2)
        self._sets.write(hashes.tobytes())
        self._ids.append(id)
        self._offsets.append(self._offsets[-1] + hashes.nbytes)

    def _load(self, key: int) -> np.ndarray:
        self._sets.seek(self._offsets[key])
        return np.frombuffer(self._sets.read(self._offsets[key + 1] - self._offsets[key]), dtype=np.uint64)
