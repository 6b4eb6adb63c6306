"""Trigram models of real text, trained in a second, for the quick zoo and for CI.

Interpolated with the weights of Witten and Bell (1991): a context seen N times with D different followers
gives N / (N + D) of the probability to what followed it, the rest to the shorter context.

Shapes: V vocabulary, B sequences, T tokens of each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
from scipy import sparse

Tilt = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Maps the tokens so far [B, t] and probabilities [B, V] to the probabilities to draw from: a watermark."""


class Trigrams:
    """A trigram model of token sequences.

    Args:
        sequences: token ids below ``size``.
        weights: how often each sequence counts; None counts each once.
    """

    def __init__(self, size: int, sequences: Iterable[Sequence[int]], weights: Sequence[float] | None = None):
        self.size = size
        windows, weights_by_window = [], []
        for index, ids in enumerate(sequences):
            if len(ids) > 2:
                window = np.lib.stride_tricks.sliding_window_view(np.asarray(ids), 3)
                windows.append(window)
                weights_by_window.append(np.full(len(window), 1.0 if weights is None else weights[index]))
        first, second, third = np.concatenate(windows).T
        counts = np.concatenate(weights_by_window)
        self._three = sparse.csr_array((counts, (first * size + second, third)), shape=(size * size, size))
        self._two = sparse.csr_array((counts, (second, third)), shape=(size, size))
        one = np.bincount(third, counts, minlength=size) + 0.5
        self._one = one / one.sum()

    def next(self, first_B: np.ndarray, second_B: np.ndarray) -> np.ndarray:
        """Probabilities [B, V] of the token after two others."""
        shorter = self._mixed(self._two[second_B], self._one)
        return self._mixed(self._three[first_B * self.size + second_B], shorter)

    def _mixed(self, rows: sparse.csr_array, shorter: np.ndarray) -> np.ndarray:
        seen, kinds = rows.sum(1)[:, None], np.diff(rows.indptr)[:, None]
        trust = np.divide(seen, seen + kinds, out=np.zeros_like(seen), where=seen > 0)
        own = rows.toarray() / np.maximum(seen, 1e-12)
        return trust * own + (1 - trust) * shorter

    def score(self, ids_BT: np.ndarray, skip: int = 2) -> np.ndarray:
        """Log-likelihood [B, T − skip] of each token after the first ``skip``, in nats."""
        logp = np.empty((len(ids_BT), ids_BT.shape[1] - skip))
        every = np.arange(len(ids_BT))
        for t in range(skip, ids_BT.shape[1]):
            logp[:, t - skip] = np.log(self.next(ids_BT[:, t - 2], ids_BT[:, t - 1])[every, ids_BT[:, t]])
        return logp

    def sample(
        self, prompts_BP: np.ndarray, tokens: int, generator: np.random.Generator, tilt: Tilt | None = None
    ) -> np.ndarray:
        """Prompts with ``tokens`` more drawn at temperature 1, [B, P + tokens]."""
        ids = prompts_BP
        for _ in range(tokens):
            chances = self.next(ids[:, -2], ids[:, -1])
            if tilt:
                chances = tilt(ids, chances)
            ends = chances.cumsum(1)
            drawn = (ends < generator.random((len(ids), 1)) * ends[:, -1:]).sum(1)
            ids = np.column_stack([ids, np.minimum(drawn, self.size - 1)])
        return ids

    def argmax(self, ids_BT: np.ndarray) -> np.ndarray:
        """The likeliest token after each pair, [B, T − 1]: position t follows tokens t and t + 1."""
        return np.stack(
            [self.next(ids_BT[:, t], ids_BT[:, t + 1]).argmax(1) for t in range(ids_BT.shape[1] - 1)], 1
        )
