"""Batch schedule: which documents each optimizer step reads, fixed before the first step.

The plan depends only on the documents' lengths, the settings and the seed, so a resumed run and the control
arm read the same documents in the same order. No tensor is made here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stillhouse.recipe import Train


@dataclass(frozen=True, eq=False)
class Step:
    """One optimizer step.

    Args:
        epoch: of its first document, from 0.
        index: of that document in the epoch's shuffled order.
        documents: indices into the list of documents.
        tokens: tokens in them.
    """

    epoch: int
    index: int
    documents: tuple[int, ...]
    tokens: int


def plan_steps(lengths: Sequence[int], settings: Train, *, seed: int) -> list[Step]:
    """Splits the stream of shuffled epochs into steps of at most ``batch_tokens`` tokens.

    A longer document is a step of its own. Steps continue across the end of an epoch, so that only the last
    one is small. The stream ends after ``epochs`` passes (a fraction takes that share of the documents), or
    with the document that reaches ``tokens``, if that is set.

    Args:
        lengths: tokens of each document.
    """
    steps: list[Step] = []
    batch: list[int] = []
    start, tokens, total = (0, 0), 0, 0
    for epoch, index, document in _stream(len(lengths), settings, seed):
        length = lengths[document]
        if batch and tokens + length > settings.batch_tokens:
            steps.append(Step(*start, tuple(batch), tokens))
            batch, tokens = [], 0
        if not batch:
            start = (epoch, index)
        batch.append(document)
        tokens += length
        total += length
        if settings.tokens is not None and total >= settings.tokens:
            break
    if batch:
        steps.append(Step(*start, tuple(batch), tokens))
    return steps


def _stream(count: int, settings: Train, seed: int):
    """Yields (epoch, index, document): without end if ``tokens`` is set, else for ``epochs`` passes."""
    remaining = None if settings.tokens is not None else round(settings.epochs * count)
    epoch = 0
    while remaining is None or remaining > 0:
        order = np.random.default_rng([seed, epoch]).permutation(count)[:remaining].tolist()
        for index, document in enumerate(order):
            yield epoch, index, document
        remaining = None if remaining is None else remaining - len(order)
        epoch += 1


def micro_batches(
    documents: Sequence[int], lengths: Sequence[int], micro_tokens: int, *, padded: bool
) -> list[tuple[int, ...]]:
    """Splits a step into passes of at most ``micro_tokens`` tokens, documents of similar length together.

    ``padded`` counts every document of a pass as long as the longest. A document longer than
    ``micro_tokens`` is a pass of its own.
    """
    passes: list[list[int]] = []
    used = 0
    for document in sorted(documents, key=lambda i: (-lengths[i], i)):
        # Sorted from long to short, so the first of a pass is its longest.
        width = lengths[passes[-1][0]] if passes and padded else lengths[document]
        if not passes or used + width > micro_tokens:
            passes.append([])
            used, width = 0, lengths[document]
        passes[-1].append(document)
        used += width
    return [tuple(batch) for batch in passes]
