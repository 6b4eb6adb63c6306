"""Transcripts of the exchangeable test without a model: scores drawn from distributions."""

import json

import numpy as np
import pyarrow as pa

TEXT = "a text that is long enough to be counted"


def transcript(scores_NK1, *, texts=None, column="min_k", facts=None, **columns):
    """A transcript whose ``column`` holds the scores; NaN becomes null."""
    scores = np.asarray(scores_NK1, float)
    n, width = scores.shape
    rows = {
        "id": [f"row{i}" for i in range(n) for _ in range(width)],
        "account": ["north"] * (n * width),
        "draw": np.tile(np.arange(width), n),
        "text": texts or [TEXT] * (n * width),
        column: pa.array(scores.ravel(), pa.float64(), from_pandas=True),
        **columns,
    }
    table = pa.table(rows)
    return (
        table
        if facts is None
        else table.replace_schema_metadata({b"exchangeable": json.dumps(facts).encode()})
    )


def used_log(rng, n, k, f, shift):
    """Scores of a log of which the share f was trained on."""
    scores = rng.normal(size=(n, k + 1))
    scores[rng.permutation(n)[: round(f * n)], 0] += shift
    return scores
