"""Draws prompts at random, and splits off held-out prompts that measure the student.

Draws depend on the seed and on the ids of the prompts, never on the order of the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from stillhouse.corpus.messages import user_text
from stillhouse.corpus.ngrams import ngrams
from stillhouse.corpus.prompts.prompt import Prompt
from stillhouse.errors import CorpusError
from stillhouse.hashing import sha256_text


def draw_ids(ids: Iterable[str], count: int, seed: int) -> set[str]:
    """Draws ``count`` ids: those whose SHA-256 with the seed is smallest.

    Draws with one seed are nested: a larger ``count`` contains the smaller one.
    """
    return set(sorted(ids, key=lambda id: (sha256_text(f"draw {seed} {id}"), id))[:count])


def split_held_out(
    prompts: list[Prompt], count: int, *, ngram: int | None = 13, seed: int = 0
) -> tuple[list[Prompt], list[Prompt], list[Prompt]]:
    """Splits prompts into those to train on, those held out, and those dropped.

    A prompt is dropped if its user text shares a word n-gram with that of a held-out prompt (see
    :mod:`~stillhouse.corpus.ngrams`; texts of fewer than ``ngram`` words overlap only if they are the same).
    With ``ngram`` None no prompt is dropped. Each list is in the order of ``prompts``.

    Raises:
        CorpusError: no prompt is left to train on.
    """
    held_out_ids = draw_ids((prompt.id for prompt in prompts), count, seed)
    held_out = [prompt for prompt in prompts if prompt.id in held_out_ids]
    held_out_ngrams: set[str] = set()
    if ngram is not None:
        for prompt in held_out:
            held_out_ngrams |= ngrams(user_text(prompt.messages), ngram)
    train: list[Prompt] = []
    dropped: list[Prompt] = []
    for prompt in prompts:
        if prompt.id not in held_out_ids:
            overlaps = ngram is not None and not held_out_ngrams.isdisjoint(
                ngrams(user_text(prompt.messages), ngram)
            )
            (dropped if overlaps else train).append(prompt)
    if not train:
        shared = f" and {len(dropped)} share {ngram} words in a row with one of those" if dropped else ""
        raise CorpusError(
            f"no prompt is left to train on: of {len(prompts)}, {len(held_out)} are held out{shared}",
            hint=_hint(dropped, held_out, ngram),
        )
    return train, held_out, dropped


def _hint(dropped: list[Prompt], held_out: list[Prompt], ngram: int | None) -> str:
    """What to change: the overlap, where most prompts share the same words, or the numbers."""
    if dropped and ngram is not None:
        counts = Counter(g for p in (*dropped, *held_out) for g in ngrams(user_text(p.messages), ngram))
        count = max(counts.values())
        words = min(words for words, c in counts.items() if c == count)
        if count > (len(dropped) + len(held_out)) / 2:
            return (
                f"{count} prompts share the words {words!r}, an instruction rather than a leak: set "
                "filter.contamination_ngram: null, or to more words than they share."
            )
    return "Lower prompts.held_out or give more prompts."
