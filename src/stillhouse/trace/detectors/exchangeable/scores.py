"""Ranking scores: one number for each text, higher if the suspect seems to have been trained on it.

All are computed from the columns of a transcript, in the same way for a delivered output and its resamples.
The choice of a score affects the power of the test, never its rate of false accusations.

Shapes: N outputs, K resamples of each.
"""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from stillhouse.corpus.ngrams import words
from stillhouse.errors import UsageError
from stillhouse.trace.delivered_log import SHORTEST

MIN_K_SHARE = 0.2
"""Share of tokens, the least likely ones, that min-k% averages."""
LONGEST_NGRAM = 4


def min_k(token_logps: Sequence[float] | np.ndarray, share: float = MIN_K_SHARE) -> float:
    """Mean log-probability of the ``share`` least likely tokens, at least one token.

    Min-k% (Shi et al. 2023, arXiv:2310.16789, eq. 2): texts seen in training have few unlikely tokens.
    """
    values = np.asarray(token_logps, np.float64)
    count = max(1, int(len(values) * share))
    return float(np.partition(values, count - 1)[:count].mean())


def split_in_half(text: str) -> tuple[str, str]:
    """Beginning and rest of a text, cut at the white space nearest the middle; without any, at the middle."""
    middle = len(text) // 2
    spaces = [i for i, character in enumerate(text) if character.isspace() and 0 < i < len(text) - 1]
    cut = min(spaces, key=lambda i: abs(i - middle), default=middle)
    return text[:cut], text[cut:]


def ngram_overlap(continuation: str, rest: str) -> float:
    """Similarity in [0, 1] of a continuation of a text's beginning to its true rest.

    The mean over n = 1 to 4 of the share of the rest's word n-grams that occur in the continuation, counted
    with multiplicity. The continuation is cut to as many words as the rest has.
    """
    true_words = words(rest)
    continued_words = words(continuation)[: len(true_words)]
    shares = []
    for n in range(1, min(LONGEST_NGRAM, len(true_words)) + 1):
        true, continued = _word_ngrams(true_words, n), _word_ngrams(continued_words, n)
        shares.append((true & continued).total() / true.total())
    return sum(shares) / len(shares) if shares else 0.0


def _word_ngrams(text: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(text[i : i + n]) for i in range(len(text) - n + 1))


@dataclass(frozen=True)
class RankingScore:
    """A score as a function of a transcript's columns."""

    columns: tuple[str, ...]
    compute: Callable[..., np.ndarray]
    description: str
    requirement: str
    """What the suspect and the observer must provide."""


def _per_token(loglik: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    return np.divide(loglik, tokens, out=np.full(len(loglik), np.nan), where=tokens > 0)


def _per_character(loglik: np.ndarray, characters: np.ndarray) -> np.ndarray:
    return np.divide(loglik, characters, out=np.full(len(loglik), np.nan), where=characters > 0)


_LOGPROBS = "the suspect's log-probabilities of given text; with text only, use the score `overlap`"
SCORES = {
    "loglik": RankingScore(
        ("loglik", "tokens"), _per_token, "the suspect's log-likelihood of the text, per token", _LOGPROBS
    ),
    "total": RankingScore(
        ("loglik",), lambda loglik: loglik, "the suspect's log-likelihood of the text", _LOGPROBS
    ),
    "per_character": RankingScore(
        ("loglik", "characters"),
        _per_character,
        "the suspect's log-likelihood of the text, per character",
        _LOGPROBS,
    ),
    "min_k": RankingScore(
        ("min_k",), lambda least: least, "the suspect's log-likelihood of its least likely tokens", _LOGPROBS
    ),
    "reference": RankingScore(
        ("loglik", "reference_loglik", "characters"),
        lambda loglik, reference, characters: _per_character(loglik - reference, characters),
        "the suspect's log-likelihood of the text less a reference model's, per character",
        "the suspect's log-probabilities and a reference model's (--reference)",
    ),
    "teacher": RankingScore(
        ("loglik", "teacher_loglik", "teacher_tokens"),
        lambda loglik, teacher, tokens: _per_token(loglik - teacher, tokens),
        "the suspect's log-likelihood of the text less the teacher's own, per token of the teacher",
        "the suspect's log-probabilities and the archived teacher's (--teacher)",
    ),
    "overlap": RankingScore(
        ("overlap",),
        lambda shared: shared,
        "the overlap of the text's second half with what the suspect writes after its first",
        "a suspect that continues a text",
    ),
}
"""Scores by name. `reference` is per character and `teacher` per token of the teacher, because tokenizers may
differ."""


@dataclass(frozen=True)
class ScoreMatrix:
    """Scores of a transcript: one row per output, the delivered one in column 0, its resamples after it."""

    ids: list[str]
    scores_NK1: np.ndarray
    """NaN if the score is missing or not finite, or the text is too short."""
    characters_NK1: np.ndarray
    """Length of each text; NaN if it is missing or too short."""
    unscored: tuple[int, int]
    """Number of delivered outputs and of resamples without a finite score."""
    short: int
    """Number of resamples left out as too short, like delivered outputs of that length."""


def find_score(name: str) -> RankingScore:
    """The score with this name.

    Raises:
        UsageError: the name is unknown.
    """
    if name not in SCORES:
        near = difflib.get_close_matches(name, SCORES, n=1)
        known = ", ".join(SCORES)
        raise UsageError(
            f"there is no score {name!r}", hint=f"Did you mean {near[0]}?" if near else f"Known: {known}."
        )
    return SCORES[name]


def missing_columns(transcript: pa.Table, score: RankingScore) -> list[str]:
    """Columns that the score needs and that are missing or empty."""
    source = {"characters": "text"}
    needed = [source.get(name, name) for name in score.columns]
    names = transcript.column_names
    return [n for n in needed if n not in names or transcript[n].null_count == len(transcript)]


def score_matrix(transcript: pa.Table, score: RankingScore) -> ScoreMatrix:
    """Scores of a transcript, outputs in the order of their first row."""
    ids = transcript["id"].to_pylist()
    row_of = {id: number for number, id in enumerate(dict.fromkeys(ids))}
    rows = np.fromiter((row_of[id] for id in ids), np.int64, len(ids))
    draws = transcript["draw"].to_numpy().astype(np.int64)
    texts = transcript["text"].to_pylist()
    characters = np.array([len(text) if _long_enough(text) else np.nan for text in texts], np.float64)
    columns = [characters if name == "characters" else _floats(transcript, name) for name in score.columns]
    with np.errstate(invalid="ignore"):
        values = score.compute(*columns)
    eligible = ~np.isnan(characters)
    unscored = ~np.isfinite(values) & eligible
    values = np.where(np.isfinite(values) & eligible, values, np.nan)
    shape = (len(row_of), int(draws.max(initial=0)) + 1)
    scores_NK1, characters_NK1 = np.full(shape, np.nan), np.full(shape, np.nan)
    scores_NK1[rows, draws], characters_NK1[rows, draws] = values, characters
    return ScoreMatrix(
        list(row_of),
        scores_NK1,
        characters_NK1,
        (int((unscored & (draws == 0)).sum()), int((unscored & (draws > 0)).sum())),
        int((~eligible & (draws > 0)).sum()),
    )


def _long_enough(text: str | None) -> bool:
    """Applies the rule of :func:`stillhouse.trace.delivered_log.read_log` to resamples too."""
    return text is not None and len(text.strip()) >= SHORTEST


def _floats(transcript: pa.Table, name: str) -> np.ndarray:
    return transcript[name].cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
