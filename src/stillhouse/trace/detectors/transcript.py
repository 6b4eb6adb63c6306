"""What transcripts of several tests have in common: the reason where they are empty, scores asked blind.

`observe` writes tables and never findings, also where it cannot look (a tokenizer that differs, an API that
gives no log-probabilities). The reason travels in the table's metadata, through parquet and back, so that
whoever judges the bundle again reads the same sentence.
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
    """A transcript of ``schema`` without rows, and why: what is missing, and what would help."""
    return schema.empty_table().replace_schema_metadata({_KEY: reason.encode()})


def empty_reason(transcript: pa.Table) -> str | None:
    """The reason of a transcript made by :func:`refused`; None for any other."""
    reason = (transcript.schema.metadata or {}).get(_KEY)
    return None if reason is None else reason.decode()


def score_blind(model: Suspect, texts: Sequence[str]) -> tuple[list[int], list[float | None]]:
    """Tokens and log-likelihood (None where there is none) of each text, asked in alphabetical order.

    So whoever answers cannot tell by the order which texts are the ones in question.
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
    """Nats a token, a row each; NaN where there is no log-likelihood or no token."""
    loglik = transcript[column].to_numpy().astype(np.float64)
    tokens = transcript["tokens"].to_numpy().astype(np.float64)
    return np.divide(loglik, tokens, out=np.full(len(tokens), np.nan), where=tokens > 0)
