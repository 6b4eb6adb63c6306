"""Teachers and students of n-grams: small enough to redraw the key and everything after it for each trial."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pyarrow as pa

from stillhouse.trace.detectors.radioactivity.observe import SCHEMA
from stillhouse.watermark import Mark

VOCABULARY = 60
WINDOW = 2


class Teacher:
    """A random language of order 2, with some nats of uncertainty at each token."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        weights = rng.gamma(0.25, size=(VOCABULARY, VOCABULARY, VOCABULARY))
        self.weights = weights + 1e-4

    def text(self, rng: np.random.Generator, length: int, mark: Mark | None) -> list[int]:
        ids = rng.integers(0, VOCABULARY, WINDOW).tolist()
        while len(ids) < length:
            weights_V = self.weights[ids[-2], ids[-1]]
            if mark is not None:
                weights_V = mark(ids, weights_V)
            total_V = weights_V.cumsum()
            ids.append(int(np.searchsorted(total_V, rng.random() * total_V[-1], side="right")))
        return ids

    def texts(self, seed: int, count: int, length: int, mark: Mark | None = None) -> list[list[int]]:
        rng = np.random.default_rng(seed)
        return [self.text(rng, length, mark) for _ in range(count)]


class Student:
    """Counts of what follows two tokens, with what follows one of them and a constant for the rest."""

    def __init__(self, texts: list[list[int]]) -> None:
        self.counts = np.full((VOCABULARY, VOCABULARY, VOCABULARY), 1e-3)
        for ids in texts:
            for a, b, c in zip(ids, ids[1:], ids[2:], strict=False):
                self.counts[a, b, c] += 1
        self.counts += 0.1 * self.counts.sum(0, keepdims=True) / self.counts.sum((0, 2))[None, :, None]

    def likeliest(self, ids: list[int]) -> list[int]:
        """After each token, as in an open transcript; the first has only a guess."""
        return [0, *(int(self.counts[a, b].argmax()) for a, b in pairwise(ids))]

    def answers(self, seed: int, count: int, length: int) -> list[list[int]]:
        speaker = Teacher.__new__(Teacher)
        speaker.weights = self.counts
        return speaker.texts(seed, count, length)


def open_table(student: Student, texts: list[list[int]], prompts: list[list[int]] | None = None) -> pa.Table:
    rows = [
        {"id": str(n), "mode": "open", "context": prompt, "tokens": ids, "text": "",
         "predicted": student.likeliest(prompt + ids)[len(prompt) :]}
        for n, (ids, prompt) in enumerate(zip(texts, prompts or [[]] * len(texts), strict=True))
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, SCHEMA)


def closed_table(answers: list[list[int]], prompts: list[list[int]] | None = None) -> pa.Table:
    rows = [
        {"id": str(n), "mode": "closed", "context": prompt, "tokens": ids, "text": ""}
        for n, (ids, prompt) in enumerate(zip(answers, prompts or [[]] * len(answers), strict=True))
    ]
    return pa.Table.from_pylist(rows, SCHEMA)
