"""External merge sort for more rows than fit in memory (Knuth, TAOCP 3, section 5.4)."""

from __future__ import annotations

import heapq
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from stillhouse.corpus.schema import Row
from stillhouse.corpus.store.shards import batched, read_shard, write_shard

RUN_ROWS = 4096
"""Rows sorted in memory at once."""
MERGE_ROWS = 32
"""Rows of each run in memory during the merge."""


def sorted_rows(
    rows: Iterable[Row],
    key: Callable[[Row], Any],
    schema: pa.Schema,
    directory: Path,
    *,
    run_rows: int = RUN_ROWS,
) -> Iterator[Row]:
    """Streams ``rows`` in the order of ``key``.

    At most ``run_rows`` rows, or :data:`MERGE_ROWS` of each run, are in memory.

    Args:
        directory: an existing directory for temporary files.
    """
    with tempfile.TemporaryDirectory(prefix=".sort-", dir=directory) as folder:
        runs: list[Path] = []
        for group in batched(rows, run_rows):
            group.sort(key=key)
            if not runs and len(group) < run_rows:
                yield from group
                return
            path = Path(folder) / f"run-{len(runs)}.parquet"
            write_shard(path, group, schema, group_rows=MERGE_ROWS)
            runs.append(path)
            del group  # before the next one is built: one run in memory, not two
        yield from heapq.merge(*(read_shard(path, schema, batch_rows=MERGE_ROWS) for path in runs), key=key)
