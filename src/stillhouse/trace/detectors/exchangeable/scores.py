"""Scores: how much a text looks as if the suspect had been trained on it, one number a text.

All are computed from a transcript's columns, alike for a delivered output and its resamples. Whether a score
is a good one decides how much is found, never how often an innocent is accused.

Shapes: N items, K resamples of each.
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

LEAST = 0.2
"""Share of the least likely tokens that min-k% looks at."""
LONGEST_GRAM = 4


def min_k(token_logps: Sequence[float] | np.ndarray, share: float = LEAST) -> float:
    """The mean log-probability of the ``share`` least likely tokens, at least one (Shi et al. 2023,
    arXiv:2310.16789, eq. 2): what was seen in training has few tokens that surprise."""
    values = np.asarray(token_logps, np.float64)
    count = max(1, int(len(values) * share))
    return float(np.partition(values, count - 1)[:count].mean())


def split_in_half(text: str) -> tuple[str, str]:
    """A text cut at the white space nearest its middle (or there, where it has none): beginning and rest."""
    middle = len(text) // 2
    spaces = [place for place, letter in enumerate(text) if letter.isspace() and 0 < place < len(text) - 1]
    cut = min(spaces, key=lambda place: abs(place - middle), default=middle)
    return text[:cut], text[cut:]


def ngram_overlap(continuation: str, rest: str) -> float:
    """How much of a text's true rest a continuation of its beginning has, in [0, 1].

    The mean over n = 1 to 4 of the share of the rest's n-grams of words that the continuation has too, each
    as often as it occurs there. A continuation is cut to as many words as the rest has.
    """
    true = words(rest)
    said = words(continuation)[: len(true)]
    shares = []
    for n in range(1, min(LONGEST_GRAM, len(true)) + 1):
        theirs, ours = _grams(true, n), _grams(said, n)
        shares.append((theirs & ours).total() / theirs.total())
    return sum(shares) / len(shares) if shares else 0.0


def _grams(found: Sequence[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(found[i : i + n]) for i in range(len(found) - n + 1))


@dataclass(frozen=True)
class RankingScore:
    """A column that is made from a transcript's."""

    columns: tuple[str, ...]
    compute: Callable[..., np.ndarray]
    words: str
    needs: str
    """What a suspect, or whoever observes, has to give."""


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
"""By name. `reference` is per character and `teacher` per token of the teacher: the tokenizers may differ."""


@dataclass(frozen=True)
class ScoreMatrix:
    """A transcript as a matrix: one row an item, column 0 the delivered output."""

    ids: list[str]
    scores_NK1: np.ndarray
    """NaN where a score is missing or not finite, or the text too short to count."""
    characters_NK1: np.ndarray
    """Length of each text; NaN where there is none, or it is too short to count."""
    unscored: tuple[int, int]
    """Texts without a finite score: delivered ones, resamples."""
    short: int
    """Resamples that are left out as too short, as delivered outputs of that length are."""


def find_score(name: str) -> RankingScore:
    """The score of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in SCORES:
        near = difflib.get_close_matches(name, SCORES, n=1)
        known = ", ".join(SCORES)
        raise UsageError(
            f"there is no score {name!r}", hint=f"Did you mean {near[0]}?" if near else f"Known: {known}."
        )
    return SCORES[name]


def missing_columns(transcript: pa.Table, score: RankingScore) -> list[str]:
    """Columns that the score needs and that are not there, or empty."""
    made = {"characters": "text"}
    wanted = [made.get(name, name) for name in score.columns]
    names = transcript.column_names
    return [n for n in wanted if n not in names or transcript[n].null_count == len(transcript)]


def score_matrix(transcript: pa.Table, score: RankingScore) -> ScoreMatrix:
    """The transcript as a matrix, items in the order in which they come first."""
    ids = transcript["id"].to_pylist()
    place = {id: number for number, id in enumerate(dict.fromkeys(ids))}
    rows = np.fromiter((place[id] for id in ids), np.int64, len(ids))
    draws = transcript["draw"].to_numpy().astype(np.int64)
    texts = transcript["text"].to_pylist()
    characters = np.array([len(text) if _counts(text) else np.nan for text in texts], np.float64)
    columns = [characters if name == "characters" else _floats(transcript, name) for name in score.columns]
    with np.errstate(invalid="ignore"):
        values = score.compute(*columns)
    counted = ~np.isnan(characters)
    bad = ~np.isfinite(values) & counted
    values = np.where(np.isfinite(values) & counted, values, np.nan)
    shape = (len(place), int(draws.max(initial=0)) + 1)
    scores_NK1, characters_NK1 = np.full(shape, np.nan), np.full(shape, np.nan)
    scores_NK1[rows, draws], characters_NK1[rows, draws] = values, characters
    return ScoreMatrix(
        list(place),
        scores_NK1,
        characters_NK1,
        (int((bad & (draws == 0)).sum()), int((bad & (draws > 0)).sum())),
        int((~counted & (draws > 0)).sum()),
    )


def _counts(text: str | None) -> bool:
    """As :func:`.log.read_log` decides for delivered outputs: what is left out there is left out here."""
    return text is not None and len(text.strip()) >= SHORTEST


def _floats(transcript: pa.Table, name: str) -> np.ndarray:
    return transcript[name].cast(pa.float64()).to_numpy(zero_copy_only=False).astype(np.float64)
