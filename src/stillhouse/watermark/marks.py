"""A watermark: how a key changes which token is drawn, and how the key's holder scores a token.

There are three schemes. Each uses the window, the ``window`` tokens of the answer before the drawn token, and
the pseudo-random word that the key gives every token after this window (:mod:`.pseudorandom`).

- ``kgw``, the green list (Kirchenbauer et al. 2023, arXiv:2301.10226, algorithm 2): a share γ of the
  vocabulary is green, and δ is added to the logits of the green tokens. Each token is green with probability
  γ independently, where the paper takes exactly γV tokens, so that counts over different pairs are binomial.
- ``gumbel`` (Aaronson 2022, "My AI Safety Lecture for UT Effective Altruism"; the exponential scheme): each
  token has a uniform number r, and the token of the largest r^(1/p) is drawn. Over keys, a token is drawn
  with probability p.
- ``tournament`` (SynthID-Text; Dathathri et al. 2024, Nature 634:818, two candidates a match, Bernoulli(½)
  scores): for each of ``depth`` layers, p(x) becomes p(x) (1 + g(x) − Σ g p), the chance to win a match of
  two draws. Over keys, it is p again.

A mark is applied last, to what temperature, top-k, top-p and min-p leave. The first ``window`` tokens of an
answer are not marked, because a detector that has only the answer could not find the mark; so equal prompts
do not get equal answers. ``gumbel`` and ``tournament`` also skip a window that occurred before in the same
answer (repeated-context masking), because its second token would not be a fresh draw. Across answers under
one key these two repeat choices, so the answers are less varied than the model's.

At temperature 0 nothing is marked: there is no randomness to hide a mark in.

Shapes: N pairs, W tokens of a window, V vocabulary, D layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, get_args

import numpy as np

from stillhouse.errors import UsageError
from stillhouse.watermark.keys import checked_key, key_fingerprint
from stillhouse.watermark.pseudorandom import token_words, vocabulary_words, window_seeds

Scheme = Literal["kgw", "gumbel", "tournament"]
LAYERS = 64
"""Bits of a word; a tournament uses one for each layer."""


@dataclass(frozen=True)
class Mark:
    """The watermark of one key. Samplers call it; detectors use :meth:`scores`."""

    key: bytes = field(repr=False)
    scheme: Scheme = "kgw"
    window: int = 2
    """Tokens before the drawn one that choose its word. More are harder to forge and easier to wash out."""
    gamma: float = 0.25
    """Share of green tokens (kgw)."""
    delta: float = 2.0
    """Added to the logits of green tokens, in nats (kgw)."""
    depth: int = 30
    """Layers (tournament)."""

    def __post_init__(self) -> None:
        checked_key(self.key)
        if self.scheme not in get_args(Scheme):
            raise UsageError(
                f"unknown watermark scheme {self.scheme!r}", hint=f"Choose {', '.join(get_args(Scheme))}."
            )
        if self.window < 1:
            raise UsageError(f"a watermark's window has at least 1 token, not {self.window}")
        if not 0 < self.gamma < 1:
            raise UsageError(f"gamma, the share of green tokens, is between 0 and 1, not {self.gamma}")
        if not 1 <= self.depth <= LAYERS:
            raise UsageError(f"a tournament has 1 to {LAYERS} layers, not {self.depth}")

    @property
    def public_parameters(self) -> dict[str, str | int | float]:
        """The parameters without the secret; JSON-able. ``key`` is the key's fingerprint."""
        of_scheme = {"kgw": {"gamma": self.gamma, "delta": self.delta}, "tournament": {"depth": self.depth}}
        shared = {"key": key_fingerprint(self.key), "scheme": self.scheme, "window": self.window}
        return shared | of_scheme.get(self.scheme, {})

    def __call__(self, ids: Sequence[int], weights_V: np.ndarray) -> np.ndarray:
        """Weights [V] to draw the next token from.

        Args:
            ids: the answer so far.
            weights_V: float64, not negative, of any sum: the distribution without the mark.
        """
        if len(ids) < self.window or (self.scheme != "kgw" and self._came_before(ids)):
            return weights_V
        words_V = vocabulary_words(self._seeds(np.array([ids[-self.window :]]))[0], len(weights_V))
        if self.scheme == "kgw":
            return weights_V * np.exp(self.delta * self._values(words_V))
        if self.scheme == "gumbel":
            return _one_hot(_race_winner(weights_V, words_V), len(weights_V))
        return _tournament(weights_V, words_V, self.depth)

    def scores(self, windows_NW: np.ndarray, tokens_N: np.ndarray) -> np.ndarray:
        """The score of each pair [N], float64.

        kgw: 1 if green, else 0. gumbel: −log(1 − r), exponential of mean 1 under the null. tournament: the
        number of its ``depth`` layers that the token wins, Binomial(depth, ½) under the null.
        """
        return self._values(token_words(self._seeds(windows_NW), tokens_N))

    def _seeds(self, windows_NW: np.ndarray) -> np.ndarray:
        return window_seeds(self.key, self.scheme, windows_NW)

    def _values(self, words_N: np.ndarray) -> np.ndarray:
        if self.scheme == "kgw":
            return (words_N < np.uint64(int(self.gamma * 2**64))).astype(np.float64)
        if self.scheme == "gumbel":
            return -np.log1p(-_uniforms(words_N))
        return np.bitwise_count(words_N & np.uint64(2**self.depth - 1)).astype(np.float64)

    def _came_before(self, ids: Sequence[int]) -> bool:
        last = list(ids[-self.window :])
        return any(
            ids[start] == last[0] and list(ids[start : start + self.window]) == last
            for start in range(len(ids) - self.window)
        )


def _uniforms(words_N: np.ndarray) -> np.ndarray:
    """Numbers strictly between 0 and 1 from the upper 53 bits."""
    return ((words_N >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53


def _race_winner(weights_V: np.ndarray, words_V: np.ndarray) -> int:
    """The token of the largest r^(1/p): the first arrival of exponential clocks with rates p."""
    possible = np.flatnonzero(weights_V)
    arrivals = -np.log(_uniforms(words_V[possible])) / weights_V[possible]
    return int(possible[arrivals.argmin()])


def _one_hot(token: int, size: int) -> np.ndarray:
    weights_V = np.zeros(size)
    weights_V[token] = 1.0
    return weights_V


def _tournament(weights_V: np.ndarray, words_V: np.ndarray, depth: int) -> np.ndarray:
    possible = np.flatnonzero(weights_V)
    chances = weights_V[possible] / weights_V[possible].sum()
    bits, wins = words_V[possible], np.empty(len(possible))
    for _ in range(depth):
        wins[:] = bits & np.uint64(1)
        bits >>= np.uint64(1)
        wins += max(0.0, 1.0 - chances @ wins)  # rounding can bring the sum of chances above 1
        chances *= wins
    weights_V = np.zeros(len(weights_V))
    weights_V[possible] = chances
    return weights_V
