"""The columns of a corpus, and conversion between rows (plain dicts) and Arrow.

A row is one finished exchange with its provenance. Unknown values are None. In Arrow, tools and tool calls
are JSON text: their arguments have no common type.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

import pyarrow as pa

Row = dict[str, Any]

MESSAGES = pa.list_(
    pa.struct(
        [
            ("role", pa.string()),
            ("content", pa.string()),
            ("reasoning_content", pa.string()),
            ("weight", pa.int8()),
            ("tool_calls", pa.string()),
            ("tool_call_id", pa.string()),
            ("name", pa.string()),
        ]
    )
)
OLD_MESSAGES = pa.list_(pa.struct([MESSAGES.value_type.field(index) for index in range(3)]))
"""As versions before tool calls and weights wrote them."""

SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("prompt_id", pa.string()),
        ("sample", pa.int32()),
        ("split", pa.string()),
        ("messages", MESSAGES),
        ("tools", pa.string()),
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
    return pa.Table.from_pylist([_with_json_text(row) for row in rows], schema=schema)


def to_rows(batch: pa.RecordBatch | pa.Table) -> list[Row]:
    """Arrow rows as dicts; a message has only the fields that are not null."""
    rows: list[Row] = batch.to_pylist()
    for row in rows:
        if row.get("tools") is not None:
            row["tools"] = json.loads(row["tools"])
        for message in row.get("messages") or ():
            for key in [key for key, value in message.items() if value is None]:
                del message[key]
            if "tool_calls" in message:
                message["tool_calls"] = json.loads(message["tool_calls"])
    return rows


def _with_json_text(row: Mapping[str, Any]) -> Mapping[str, Any]:
    """The row with its tools and tool calls as JSON text."""
    messages = row.get("messages") or ()
    if not row.get("tools") and not any("tool_calls" in message for message in messages):
        return row
    changed = dict(row)
    if row.get("tools"):
        changed["tools"] = json.dumps(row["tools"], ensure_ascii=False)
    changed["messages"] = [
        message | {"tool_calls": json.dumps(message["tool_calls"], ensure_ascii=False)}
        if message.get("tool_calls")
        else message
        for message in messages
    ]
    return changed
