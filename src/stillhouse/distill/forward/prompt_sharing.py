"""Prompt sharing: documents with the same prompt in one pass, with the prompt read once.

A packed row holds the prompt and, after it, each answer, which attends to the prompt and to itself
(:mod:`.packed_attention`). Hidden states and gradients are those of the separate documents; the prompt's
gradient is the sum over its answers.

Prompts are shared if their tokens are equal; a document's origin plays no part.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from stillhouse.distill.data.batch_schedule import micro_batches
from stillhouse.distill.data.documents import Document

MIN_SHARED_PROMPT = 16
"""Shorter prompts are read again: for them an attention mask costs more than it saves."""


@dataclass(frozen=True, eq=False)
class PackedRow:
    """A packed row of segments; a segment is a document, a shared prompt, or an answer to one.

    Args:
        ids: of the whole row, int32.
        positions: of each token in its document, int64.
        lengths: tokens of each segment.
        prefix_segments: for each segment, the number of the earlier segment that it continues, or None.
        predicting: offsets in the row whose next token is learned, document after document, int64.
    """

    ids: np.ndarray
    positions: np.ndarray
    lengths: list[int]
    prefix_segments: list[int | None]
    predicting: np.ndarray


def prompt_of(document: Document) -> bytes | None:
    """The tokens before the first learned token, as a key; None if they are too few to share."""
    length = _prompt_length(document)
    return document.ids[:length].tobytes() if length >= MIN_SHARED_PROMPT else None


def share_prompts(documents: Sequence[Document], *, share: bool = True) -> PackedRow:
    """Packs ``documents`` into a row, in their order; neighbours with one prompt share it if ``share``."""
    segments: list[np.ndarray] = []
    start_positions: list[int] = []
    prefix_segments: list[int | None] = []
    predicting: list[np.ndarray] = []
    end = 0

    def add(ids: np.ndarray, start_position: int, prefix: int | None) -> None:
        nonlocal end
        segments.append(ids)
        start_positions.append(start_position)
        prefix_segments.append(prefix)
        end += len(ids)

    for prompt, neighbours in groupby(documents, prompt_of):
        group = list(neighbours)
        if not share or prompt is None or len(group) == 1:
            for document in group:
                predicting.append(end + document.predicting)
                add(document.ids, 0, None)
            continue
        length, start, prompt_segment = _prompt_length(group[0]), end, len(segments)
        add(group[0].ids[:length], 0, None)
        for document in group:
            # The prompt's last token predicts the first of every answer.
            after = end - length + document.predicting
            predicting.append(np.where(document.predicting < length, start + document.predicting, after))
            add(document.ids[length:], length, prompt_segment)
    return PackedRow(
        np.concatenate(segments),
        np.concatenate(
            [first + np.arange(len(ids)) for first, ids in zip(start_positions, segments, strict=True)]
        ),
        [len(ids) for ids in segments],
        prefix_segments,
        np.concatenate(predicting),
    )


def prompt_sharing_batches(
    indices: Sequence[int], documents: Sequence[Document], micro_tokens: int
) -> list[tuple[int, ...]]:
    """Splits a step into packed passes of at most ``micro_tokens`` tokens, documents of one prompt together.

    Like :func:`stillhouse.distill.data.batch_schedule.micro_batches`, but a prompt counts once in each pass.
    Without prompts to share it returns the same.
    """
    prompts = {i: prompt_of(documents[i]) for i in indices}
    groups: dict[bytes | int, list[int]] = {}
    for i in indices:
        groups.setdefault(i if prompts[i] is None else prompts[i], []).append(i)  # pyright: ignore[reportArgumentType]
    if len(groups) == len(indices):
        return micro_batches(indices, [len(document) for document in documents], micro_tokens, padded=False)
    order = [sorted(members, key=lambda i: (-len(documents[i]), i)) for members in groups.values()]
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
    """Number of tokens up to the one that predicts the first learned token; 0 if none is learned."""
    predicting = document.predicting
    return int(predicting[0]) + 1 if len(predicting) else 0
