"""Documents that begin with the same prompt: within a pass, the model reads it once for all of them.

Several answers to one question differ only after it. A packed row then holds the prompt and, after it,
each answer, which attends to the prompt and to itself (:mod:`.packed_attention`). The hidden states and
gradients are those of the separate documents; the prompt's gradient is the sum over its answers.

Only what is equal is shared: nothing here knows where a document came from.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from stillhouse.distill.data.batches import micro_batches
from stillhouse.distill.data.documents import Document

MIN_SHARED_PROMPT = 16
"""Prompts of fewer tokens are read again: they are not worth an attention mask."""


@dataclass(frozen=True, eq=False)
class PackedRow:
    """A packed row, cut where attention begins anew.

    Args:
        ids: of the whole row, int32.
        positions: of each token in its document, int64.
        lengths: tokens of each piece; a document, a shared prompt, or an answer to one.
        prefix_segments: for each piece, the piece before it that it goes on from, or None.
        predicting: places in the row whose next token is learned, document after document, int64.
    """

    ids: np.ndarray
    positions: np.ndarray
    lengths: list[int]
    prefix_segments: list[int | None]
    predicting: np.ndarray


def prompt_of(document: Document) -> bytes | None:
    """The tokens before the first that is learned, to be compared; None where they are too few to share."""
    length = _prompt_length(document)
    return document.ids[:length].tobytes() if length >= MIN_SHARED_PROMPT else None


def share_prompts(documents: Sequence[Document], *, share: bool = True) -> PackedRow:
    """Puts ``documents`` in a row, in their order; neighbours with one prompt share it, if ``share``."""
    pieces: list[np.ndarray] = []
    firsts: list[int] = []
    prefix_segments: list[int | None] = []
    predicting: list[np.ndarray] = []
    end = 0

    def add(ids: np.ndarray, first: int, continued: int | None) -> None:
        nonlocal end
        pieces.append(ids)
        firsts.append(first)
        prefix_segments.append(continued)
        end += len(ids)

    for prompt, members in groupby(documents, prompt_of):
        family = list(members)
        if not share or prompt is None or len(family) == 1:
            for document in family:
                predicting.append(end + document.predicting)
                add(document.ids, 0, None)
            continue
        length, start, place = _prompt_length(family[0]), end, len(pieces)
        add(family[0].ids[:length], 0, None)
        for document in family:
            # The prompt's last token predicts the first of every answer.
            after = end - length + document.predicting
            predicting.append(np.where(document.predicting < length, start + document.predicting, after))
            add(document.ids[length:], length, place)
    return PackedRow(
        np.concatenate(pieces),
        np.concatenate([first + np.arange(len(ids)) for first, ids in zip(firsts, pieces, strict=True)]),
        [len(ids) for ids in pieces],
        prefix_segments,
        np.concatenate(predicting),
    )


def prompt_sharing_batches(
    indices: Sequence[int], documents: Sequence[Document], micro_tokens: int
) -> list[tuple[int, ...]]:
    """Cuts a step into packed passes of at most ``micro_tokens`` tokens, documents of one prompt together.

    Like :func:`.batches.micro_batches`, but a prompt counts once in each pass. Without prompts to share it
    returns the same.
    """
    prompts = {i: prompt_of(documents[i]) for i in indices}
    families: dict[bytes | int, list[int]] = {}
    for i in indices:
        families.setdefault(i if prompts[i] is None else prompts[i], []).append(i)  # pyright: ignore[reportArgumentType]
    if len(families) == len(indices):
        return micro_batches(indices, [len(document) for document in documents], micro_tokens, padded=False)
    order = [sorted(members, key=lambda i: (-len(documents[i]), i)) for members in families.values()]
    order.sort(key=lambda members: (-len(documents[members[0]]), members[0]))
    passes: list[list[int]] = []
    used = 0
    for members in order:
        for number, i in enumerate(members):
            cost = len(documents[i]) - (_prompt_length(documents[i]) if number else 0)
            if not passes or used + cost > micro_tokens:
                passes.append([])
                used, cost = 0, len(documents[i])
            passes[-1].append(i)
            used += cost
    return [tuple(batch) for batch in passes]


def _prompt_length(document: Document) -> int:
    """Tokens up to the one that predicts the first learned token; 0 where nothing is learned."""
    predicting = document.predicting
    return int(predicting[0]) + 1 if len(predicting) else 0
