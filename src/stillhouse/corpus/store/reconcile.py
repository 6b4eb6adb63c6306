"""Makes a corpus hold what a recipe asks for, and nothing else, without throwing answers away.

When the recipe changed since the last collection (another temperature, fewer prompts,
another split), rows that it does not ask for move to ``set_aside/`` in the corpus's
directory, and come back when a later recipe asks for them. Each shard is replaced in one
step, after its rows were set aside; a death in between leaves a row in both places at
most, and the corpus counts.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

from stillhouse.corpus.schema import Row
from stillhouse.corpus.store.corpus import Corpus
from stillhouse.corpus.store.shards import read_shard


def reconcile(corpus: Corpus, wanted: Mapping[str, str], other_prompts: Collection[str] = ()) -> int:
    """Brings ``corpus`` in line with ``wanted`` (split by exchange id); returns how many rows moved out.

    Rows of the prompts ``other_prompts`` (ids) are another teacher's business and stay as they are.
    """
    aside = Corpus(corpus.directory / "set_aside")
    moved = 0
    seen = corpus.rows(columns=["id", "split", "prompt_id"])
    if any(wanted.get(row["id"]) != row["split"] and row["prompt_id"] not in other_prompts for row in seen):
        corpus.lock().roll()
        known = aside.ids()
        for path in corpus.shards():
            moved += _clean_shard(corpus, path, wanted, other_prompts, aside, known)
        aside.seal()
    present = corpus.ids()
    for row in aside.rows():
        if row["id"] in wanted and row["id"] not in present:
            corpus.append(row | {"split": wanted[row["id"]]})
    return moved


def _clean_shard(
    corpus: Corpus,
    path: Path,
    wanted: Mapping[str, str],
    other_prompts: Collection[str],
    aside: Corpus,
    known: set[str],
) -> int:
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
        if row["id"] not in known:
            aside.append(row)
            known.add(row["id"])
    if moved or changed:
        corpus.replace_shard(path, keep)
    return moved
