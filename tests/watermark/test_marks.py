"""Marks in sampling: the distribution with and over keys, and the pseudo-random stream."""

from __future__ import annotations

import hashlib
import hmac

import numpy as np
import pytest
from scipy import stats

from stillhouse.errors import UsageError
from stillhouse.watermark import (
    Mark,
    account_key,
    key_fingerprint,
    new_key,
    parse_key,
    read_key,
    write_key,
)
from stillhouse.watermark.pseudorandom import token_words, vocabulary_words, window_seeds

KEY = bytes(range(32))
MASK = 2**64 - 1


def philox(key: tuple[int, int], block: int) -> list[int]:
    """Philox4x64-10 in Python's own integers, after figure 2 of Salmon et al. 2011."""
    counter, (k0, k1) = [block, 0, 0, 0], key
    for _ in range(10):
        first, second = 0xD2E7470EE14C6C93 * counter[0], 0xCA5A826395121157 * counter[2]
        counter = [
            (second >> 64) ^ counter[1] ^ k0,
            second & MASK,
            (first >> 64) ^ counter[3] ^ k1,
            first & MASK,
        ]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return counter


def test_philox_gives_the_published_numbers():
    """The known answers of Random123 (kat_vectors, philox4x64 10) for a counter and a key of zeros."""
    assert philox((0, 0), 0) == [
        0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B
    ]  # fmt: skip


def test_single_words_are_those_of_the_whole_vocabulary_and_of_plain_integers():
    windows = np.random.default_rng(0).integers(0, 2**31, (40, 3))
    seeds = window_seeds(KEY, "kgw", windows)
    tokens = np.random.default_rng(1).integers(0, 5000, 40)
    found = token_words(seeds, tokens)
    for seed, token, word in zip(seeds, tokens.tolist(), found.tolist(), strict=True):
        assert vocabulary_words(seed, 5000)[token] == word
        assert philox((int(seed[0]), int(seed[1])), token // 4 + 1)[token % 4] == word


def test_the_words_of_a_key_never_change():
    """Never change these: a mark of today must be detected years from now, on any machine."""
    seed = window_seeds(KEY, "kgw", np.array([[7, 100_000]]))
    digest = hashlib.blake2b(
        (7).to_bytes(4, "little") + (100_000).to_bytes(4, "little"), key=KEY, digest_size=16, person=b"kgw"
    ).digest()
    assert seed.tolist() == [[int.from_bytes(digest[:8], "little"), int.from_bytes(digest[8:], "little")]]
    assert token_words(seed, np.array([0, 49151])).tolist() == [226671239722524692, 2301966229340496948]


def test_keys_windows_and_schemes_share_nothing():
    window, other = np.array([[1, 2]]), np.array([[2, 1]])
    streams = [
        vocabulary_words(window_seeds(key, scheme, w)[0], 4096)
        for key, scheme, w in [
            (KEY, "kgw", window),
            (KEY, "kgw", other),
            (KEY, "gumbel", window),
            (bytes(32), "kgw", window),
        ]
    ]
    bits = np.array([np.unpackbits(stream.view(np.uint8)) for stream in streams]) * 2.0 - 1
    correlations = np.corrcoef(bits)[np.triu_indices(4, 1)]
    assert np.abs(correlations).max() < 4.5 / np.sqrt(bits.shape[1])
    assert np.abs(bits.mean(1)).max() < 4.5 / np.sqrt(bits.shape[1])


def test_an_accounts_key_is_an_hmac_and_differs_from_the_next_ones():
    expected = hmac.new(KEY, b"stillhouse account key 1\0" + "Zoë".encode(), hashlib.sha256).digest()
    assert account_key(KEY, "Zoë") == expected != account_key(KEY, "Zoe")
    assert len({account_key(KEY, f"account {n}") for n in range(100)}) == 100


def test_a_key_is_written_once_for_its_owner_and_read_again(tmp_path):
    key = new_key()
    assert key != new_key()
    write_key(tmp_path / "key", key)
    assert read_key(tmp_path / "key") == key
    assert (tmp_path / "key").stat().st_mode & 0o077 == 0
    with pytest.raises(UsageError, match="never overwritten"):
        write_key(tmp_path / "key", key)
    assert key.hex() not in repr(Mark(key))
    assert key.hex() not in key_fingerprint(key)


@pytest.mark.parametrize("text", ["", "ab" * 31, "ab" * 33, "xy" * 32])
def test_what_is_no_key_is_refused_and_not_repeated(text, tmp_path):
    (tmp_path / "key").write_text(text)
    for call in (lambda: parse_key(text, "THE_KEY"), lambda: read_key(tmp_path / "key")):
        with pytest.raises(UsageError, match="64 hexadecimal digits") as caught:
            call()
        assert not text or text not in str(caught.value)
    with pytest.raises(UsageError, match="cannot be read"):
        read_key(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"key": b"short"}, "256 bits"),
        ({"scheme": "unigram"}, "kgw, gumbel, tournament"),
        ({"window": 0}, "at least 1 token"),
        ({"gamma": 1.0}, "between 0 and 1"),
        ({"depth": 65}, "1 to 64 layers"),
    ],
)
def test_a_mark_that_cannot_be_is_refused(wrong, said):
    with pytest.raises(UsageError) as caught:
        Mark(**{"key": KEY, **wrong})
    assert said in f"{caught.value} {caught.value.hint}"


LAW = np.array([0.4, 0.25, 0.15, 0.1, 0.07, 0.03, 0.0])


def drawn_over_keys(scheme: str, keys: int, **settings) -> np.ndarray:
    """How often each token is drawn after one window, each time with a fresh key."""
    rng = np.random.default_rng(3)
    counts = np.zeros(len(LAW), int)
    for _ in range(keys):
        weights = Mark(rng.bytes(32), scheme, **settings)([5, 6], LAW * 3)
        counts[rng.choice(len(LAW), p=weights / weights.sum())] += 1
    return counts


@pytest.mark.parametrize(
    ("scheme", "settings"), [("gumbel", {}), ("tournament", {}), ("tournament", {"depth": 3})]
)
def test_over_keys_a_distortion_free_mark_draws_from_the_models_own_distribution(scheme, settings):
    """Chi-square over 20,000 keys; fails by chance once in 10,000 seeds (this one is fixed)."""
    counts = drawn_over_keys(scheme, 20_000, **settings)
    assert counts[-1] == 0
    assert stats.chisquare(counts[:-1], LAW[:-1] * counts.sum()).pvalue > 1e-4


def test_over_keys_a_green_list_distorts_as_its_formula_says():
    """E of p(x) e^(δ g(x)) / Σ p e^(δ g) over all 2⁶ green lists, by enumeration."""
    gamma, delta, expected = 0.25, 2.0, np.zeros(6)
    for number in range(2**6):
        green = (number >> np.arange(6)) & 1
        raised = LAW[:-1] * np.exp(delta * green)
        expected += np.prod(np.where(green, gamma, 1 - gamma)) * raised / raised.sum()
    counts = drawn_over_keys("kgw", 20_000, gamma=gamma, delta=delta)[:-1]
    assert stats.chisquare(counts, expected * counts.sum()).pvalue > 1e-4
    assert stats.chisquare(counts, LAW[:-1] * counts.sum()).pvalue < 1e-4  # the test could have seen it


def test_a_tournament_gives_the_chances_of_its_matches_played_out():
    """Two layers among four tokens, against an enumeration of all brackets of 2² draws."""
    law = np.array([0.5, 0.3, 0.15, 0.05])
    mark = Mark(KEY, "tournament", depth=2)
    bits = vocabulary_words(window_seeds(KEY, "tournament", np.array([[8, 9]]))[0], 4)
    layers = [[int(word) >> layer & 1 for word in bits] for layer in range(2)]

    def match(chances, g):
        """The distribution of the winner of two draws, with ties broken by a fair coin."""
        won = np.zeros(4)
        for a in range(4):
            for b in range(4):
                both = chances[a] * chances[b]
                won[a] += both * (0.5 if g[a] == g[b] else g[a])
                won[b] += both * (0.5 if g[a] == g[b] else g[b])
        return won

    played = match(match(law, layers[0]), layers[1])
    np.testing.assert_allclose(mark([8, 9], law), played, atol=1e-12)


def test_gumbel_takes_the_token_of_the_largest_r_to_the_one_over_p():
    words_V = vocabulary_words(window_seeds(KEY, "gumbel", np.array([[8, 9]]))[0], len(LAW))
    uniform = [(int(word) >> 11) / 2**53 for word in words_V]
    best = max(range(6), key=lambda token: uniform[token] ** (1 / LAW[token]))
    assert np.flatnonzero(Mark(KEY, "gumbel")([8, 9], LAW)).tolist() == [best]


@pytest.mark.parametrize("scheme", ["kgw", "gumbel", "tournament"])
def test_the_first_tokens_are_not_marked_and_repeated_windows_are_drawn_afresh(scheme):
    mark = Mark(KEY, scheme)
    assert mark([5], LAW) is LAW
    assert mark([5, 6], LAW) is not LAW
    assert mark([5, 6, 5], LAW) is not LAW
    assert (mark([5, 6, 1, 5, 6], LAW) is LAW) == (scheme != "kgw")
