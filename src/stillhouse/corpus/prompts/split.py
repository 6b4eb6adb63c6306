"""Which prompts are drawn, and which are kept from training to measure the student.

Draws depend on the seed and on each prompt's own id, never on the order of the file.
"""

from __future__ import annotations

from collections.abc import Iterable

from stillhouse.corpus.messages import user_text
from stillhouse.corpus.ngrams import ngrams
from stillhouse.corpus.prompts.prompt import Prompt
from stillhouse.errors import CorpusError
from stillhouse.hashing import sha256_text


def draw_ids(ids: Iterable[str], count: int, seed: int) -> set[str]:
    """``count`` ids, drawn by ``seed``: those whose SHA-256 with the seed is smallest.

    Draws of one seed are nested: a larger ``count`` contains the smaller one.
    """
    return set(sorted(ids, key=lambda id: (sha256_text(f"draw {seed} {id}"), id))[:count])


def split_held_out(
    prompts: list[Prompt], count: int, *, ngram: int | None = 13, seed: int = 0
) -> tuple[list[Prompt], list[Prompt], list[Prompt]]:
    """Splits prompts into those to train on, those held out, and those dropped.

    A prompt is dropped when the user's text in it shares a word n-gram with that of a
    held-out one (see :mod:`~stillhouse.corpus.ngrams`; texts shorter than ``ngram``
    words overlap only when they are the same); with ``ngram`` None none is. Each list is in the order
    of ``prompts``.

    Raises:
        CorpusError: nothing would be left to train on.
    """
    held_out_ids = draw_ids((prompt.id for prompt in prompts), count, seed)
    held_out = [prompt for prompt in prompts if prompt.id in held_out_ids]
    forbidden: set[str] = set()
    if ngram is not None:
        for prompt in held_out:
            forbidden |= ngrams(user_text(prompt.messages), ngram)
    train: list[Prompt] = []
    dropped: list[Prompt] = []
    for prompt in prompts:
        if prompt.id not in held_out_ids:
            shares = ngram is not None and not forbidden.isdisjoint(ngrams(user_text(prompt.messages), ngram))
            (dropped if shares else train).append(prompt)
    if not train:
        raise CorpusError(
            f"no prompt is left to train on: of {len(prompts)}, {len(held_out)} are held out and "
            f"{len(dropped)} share {ngram} words in a row with one of those",
            hint="Lower prompts.held_out or give more prompts.",
        )
    return train, held_out, dropped
