"""Near-duplicate answers: MinHash finds candidates, exact sets decide.

Similarity is the Jaccard index of two answers' sets of word 3-grams. MinHash signatures in bands (rensa;
Leskovec, Rajaraman and Ullman, Mining of Massive Datasets, 3.4) find candidates. Each candidate is compared
exactly: no answer below the threshold is dropped, and a pair at the threshold is missed with a probability of
at most :data:`MISS_PROBABILITY`. Short answers ("Yes.", "The answer is B.") to different prompts are not
duplicates: below :data:`SHORT_WORDS` words only the same words to the same prompt count, and below
:data:`SHINGLE_WORDS` only the same characters.

The index takes about 2 kB of memory for each answer; the sets are in a temporary file.
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
MISS_PROBABILITY = 1e-3
"""Largest probability that a pair exactly at the threshold is missed."""


def shingles(text: str) -> set[str]:
    """The word 3-grams of a text of at least 3 words."""
    tokens = words(text)
    return {" ".join(tokens[i : i + SHINGLE_WORDS]) for i in range(len(tokens) - SHINGLE_WORDS + 1)}


def rows_per_band(threshold: float) -> int:
    """Rows a band of the most selective banding that misses a pair at ``threshold`` rarely enough.

    With r rows a band and b = PERMUTATIONS / r bands, a pair of similarity s becomes a candidate with
    probability 1 - (1 - s^r)^b; a miss may have :data:`MISS_PROBABILITY`.
    """
    for rows in (32, 16, 8, 4, 2):
        if (1 - threshold**rows) ** (PERMUTATIONS // rows) <= MISS_PROBABILITY:
            return rows
    return 1


class NearDuplicates:
    """An index of the answers so far; :meth:`close` removes its temporary file."""

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
        """Returns the id of an earlier answer that this one nearly repeats; or None, and adds this one."""
        answer_words = words(answer)
        if len(answer_words) < SHORT_WORDS:
            # "5" and "-5", or two emoji, have the same words but are different answers.
            text = " ".join(answer_words) if len(answer_words) >= SHINGLE_WORDS else answer.strip()
            earlier = self._short.setdefault((prompt_id, text), id)
            return None if earlier == id else earlier
        tokens = [sorted(shingles(answer))]
        signature = RMinHash.from_token_sets(tokens, num_perm=PERMUTATIONS, seed=0)[0]
        hashes = np.unique(np.asarray(RMinHash.hash_token_sets(tokens)[0], dtype=np.uint64))
        # Sorted: the earliest match is reported, in whatever order the index returns candidates.
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
