"""Makes a corpus hold exactly the rows that a recipe asks for, without deleting answers.

If the recipe changed since the last collection (another temperature, fewer prompts, another split), rows that
it does not ask for move to ``set_aside/`` in the corpus's directory, and return when a later recipe asks for
them. Rows are copied there before their shard is replaced atomically: a crash in between leaves a row in both
places at most, and then the corpus counts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from stillhouse.corpus.schema import Row
from stillhouse.corpus.store.corpus import Corpus
from stillhouse.corpus.store.shards import read_shard


def reconcile(corpus: Corpus, wanted: Mapping[str, str], other_prompts: Collection[str] = ()) -> int:
    """Moves unwanted rows out of ``corpus`` and wanted ones back into it; returns how many moved out.

    Args:
        wanted: the split of each exchange, by id.
        other_prompts: ids of prompts of other teachers, whose rows stay as they are.
    """
    unwanted = Corpus(corpus.directory / "set_aside")
    moved = 0
    stored = corpus.rows(columns=["id", "split", "prompt_id"])
    if any(wanted.get(row["id"]) != row["split"] and row["prompt_id"] not in other_prompts for row in stored):
        corpus.lock().roll()  # so that all rows are in shards
        unwanted_ids = unwanted.ids()
        for path in corpus.shards():
            moved += _move_unwanted(corpus, path, wanted, other_prompts, unwanted, unwanted_ids)
        unwanted.seal()
    present = corpus.ids()
    for row in unwanted.rows():
        if row["id"] in wanted and row["id"] not in present:
            corpus.append(row | {"split": wanted[row["id"]]})
    return moved


def _move_unwanted(
    corpus: Corpus,
    path: Path,
    wanted: Mapping[str, str],
    other_prompts: Collection[str],
    unwanted: Corpus,
    unwanted_ids: set[str],
) -> int:
    """Moves the unwanted rows of one shard and corrects the split of the others; returns how many moved."""
    keep: list[Row] = []
    moved = 0
    changed = False
    for row in read_shard(path, corpus.schema):
        if row["prompt_id"] in other_prompts:
            keep.append(row)
            continue
        if row["id"] in wanted:
            changed |= wanted[row["id"]] != row["split"]
            keep.append(row | {"split": wanted[row["id"]]})
            continue
        moved += 1
        if row["id"] not in unwanted_ids:
            unwanted.append(row)
            unwanted_ids.add(row["id"])
    if moved or changed:
        corpus.replace_shard(path, keep)
    return moved
