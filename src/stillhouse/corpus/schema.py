"""The columns of a corpus, and conversion between rows (plain dicts) and Arrow.

A row is one finished exchange with its provenance. Unknown values are None.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

Row = dict[str, Any]

MESSAGES = pa.list_(
    pa.struct([("role", pa.string()), ("content", pa.string()), ("reasoning_content", pa.string())])
)

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("split", pa.string()),
        ("messages", MESSAGES),
        ("finish_reason", pa.string()),
        ("temperature", pa.float64()),
        ("top_p", pa.float64()),
        ("top_k", pa.int32()),
        ("max_tokens", pa.int32()),
        ("seed", pa.int64()),
        ("teacher", pa.string()),
        ("teacher_hash", pa.string()),
        ("template_hash", pa.string()),
        ("terms", pa.string()),
        ("prompt_source", pa.string()),
        ("collected_at", pa.string()),
        ("request_id", pa.string()),
        ("prompt_tokens", pa.int32()),
        ("completion_tokens", pa.int32()),
        ("cost_usd", pa.float64()),
        ("top_logprobs", pa.string()),
        ("tags", pa.string()),
    ]
)

REJECT_SCHEMA = pa.schema([*SCHEMA, ("reason", pa.string()), ("detail", pa.string())])
"""A rejected row with its reason (a fixed phrase) and details."""


def to_table(rows: Iterable[Mapping[str, Any]], schema: pa.Schema) -> pa.Table:
    """Rows as an Arrow table; missing columns are null."""
    return pa.Table.from_pylist(list(rows), schema=schema)


def to_rows(batch: pa.RecordBatch | pa.Table) -> list[Row]:
    """Arrow rows as dicts; messages have `reasoning_content` only if it is not null."""
    rows: list[Row] = batch.to_pylist()
    for row in rows:
        for message in row.get("messages") or ():
            if message["reasoning_content"] is None:
                del message["reasoning_content"]
    return rows
