"""Helpers for transcripts: empty ones with a reason, and log-likelihoods measured blind.

`observe` returns a table and never a finding, even if it cannot observe anything (another tokenizer, an API
without log-probabilities). The reason is kept in the table's metadata, through parquet and back, so that
judging the bundle again reports the same sentence.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from stillhouse.trace.suspects.base import Suspect

_KEY = b"reason"


def empty_transcript(schema: pa.Schema, reason: str) -> pa.Table:
    """A transcript without rows and the reason: what is missing, and what would help."""
    return schema.empty_table().replace_schema_metadata({_KEY: reason.encode()})


def empty_reason(transcript: pa.Table) -> str | None:
    """The reason of a transcript from :func:`empty_transcript`; None for any other."""
    reason = (transcript.schema.metadata or {}).get(_KEY)
    return None if reason is None else reason.decode()


def score_blind(model: Suspect, texts: Sequence[str]) -> tuple[list[int], list[float | None]]:
    """Tokens and log-likelihood of each text; None for a missing log-likelihood.

    Texts are sent in alphabetical order, so that the order does not reveal which ones are under test.
    """
    order = sorted(range(len(texts)), key=texts.__getitem__)
    answers = model.loglik([()] * len(texts), [texts[i] for i in order])
    tokens: list[int] = [0] * len(texts)
    logliks: list[float | None] = [None] * len(texts)
    for i, answer in zip(order, answers, strict=True):
        if answer is not None and math.isfinite(answer.loglik):
            tokens[i], logliks[i] = answer.tokens, answer.loglik
    return tokens, logliks


def per_token(transcript: pa.Table, column: str = "loglik") -> np.ndarray:
    """Log-likelihood per token of each row, in nats; NaN without a log-likelihood or tokens."""
    loglik = transcript[column].to_numpy().astype(np.float64)
    tokens = transcript["tokens"].to_numpy().astype(np.float64)
    return np.divide(loglik, tokens, out=np.full(len(tokens), np.nan), where=tokens > 0)
