"""A pseudo-random 64-bit word for every (window, token) pair under a key.

It takes two steps. Keyed BLAKE2b (RFC 7693) hashes the window, the tokens before a token, to a 128-bit seed.
Under that seed the counter-based generator Philox4x64-10 (Salmon et al. 2011, "Parallel Random Numbers: As
Easy as 1, 2, 3") gives each token of the vocabulary a 64-bit word. A sampler gets the words of a whole
vocabulary at the speed of numpy's own Philox; a detector computes only the one word of each pair.

The result does not depend on torch, the device or the byte order. Philox is not a cryptographic generator:
many exact words of one window may reveal that window's seed, but not the key or another window's seed.

Shapes: N pairs, W tokens of a window, V vocabulary.
"""

from __future__ import annotations

import hashlib

import numpy as np

_MULTIPLIERS = (np.uint64(0xD2E7470EE14C6C93), np.uint64(0xCA5A826395121157))
_STEPS = np.array([0x9E3779B97F4A7C15, 0xBB67AE8584CAA73B], np.uint64)
_ROUNDS = 10
_LOW, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)


def window_seeds(key: bytes, scheme: str, windows_NW: np.ndarray) -> np.ndarray:
    """Seeds [N, 2] of windows of token ids, as 64-bit words.

    Args:
        scheme: at most 16 bytes; it separates marks of different schemes under one key.
    """
    rows = np.ascontiguousarray(windows_NW, "<u4")
    start = hashlib.blake2b(key=key, digest_size=16, person=scheme.encode())
    digests = bytearray()
    for row in rows:
        state = start.copy()
        state.update(row)
        digests += state.digest()
    return np.frombuffer(bytes(digests), "<u8").astype(np.uint64).reshape(len(rows), 2)


def vocabulary_words(seed_2: np.ndarray, size: int) -> np.ndarray:
    """Words [V] of the tokens 0 … V−1 after one window."""
    return np.random.Philox(key=seed_2).random_raw(size)


def token_words(seeds_N2: np.ndarray, tokens_N: np.ndarray) -> np.ndarray:
    """Words [N] of single tokens, each under its window's seed; the same as in :func:`vocabulary_words`."""
    tokens_N = np.asarray(tokens_N).astype(np.uint64)
    zero_N = np.zeros(len(tokens_N), np.uint64)
    # numpy increments the counter before it draws, so the first four words are those of counter 1.
    counter = (tokens_N // np.uint64(4) + np.uint64(1), zero_N, zero_N, zero_N)
    keys_2N = np.ascontiguousarray(seeds_N2.T)
    for round_number in range(_ROUNDS):
        if round_number:
            keys_2N = keys_2N + _STEPS[:, None]
        high_0, low_0 = _product(_MULTIPLIERS[0], counter[0])
        high_1, low_1 = _product(_MULTIPLIERS[1], counter[2])
        counter = (high_1 ^ counter[1] ^ keys_2N[0], low_1, high_0 ^ counter[3] ^ keys_2N[1], low_0)
    return np.choose((tokens_N % np.uint64(4)).astype(np.intp), counter)


def _product(a: np.uint64, b_N: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The high and low 64 bits [N] of a 128-bit product, from products of 32-bit halves."""
    a_low, a_high, b_low, b_high = a & _LOW, a >> _HALF, b_N & _LOW, b_N >> _HALF
    cross = a_high * b_low + (a_low * b_low >> _HALF)
    other_cross = a_low * b_high + (cross & _LOW)
    return a_high * b_high + (cross >> _HALF) + (other_cross >> _HALF), a * b_N
