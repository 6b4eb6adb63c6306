"""A full disk and a missing permission: a clear error, and nothing that was stored is lost."""

from __future__ import annotations

import itertools
import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from corpus_helpers import FakeTeacher, make_prompts, make_row, run_collect

from stillhouse.corpus import Corpus, filter_corpus
from stillhouse.errors import CorpusError, StorageError
from stillhouse.recipe import Filter

ANSWER = "".join(f"{(n * 2654435761) % 2**32:08x}" for n in range(500))  # 4 kB that do not compress well


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 256 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", place], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.fixture
def nobody():
    """The rest of the test runs without the superuser's rights."""
    if os.geteuid() == 0:
        os.seteuid(65534)
        yield
        os.seteuid(0)
    else:
        yield


def fill_the_disk(corpus: Corpus) -> int:
    """Appends rows until the disk refuses one; returns how many it took."""
    for number in itertools.count():
        try:
            corpus.append(make_row(number, answer=ANSWER))
        except StorageError:
            return number
    raise AssertionError


def take_all_space(path: Path) -> None:
    with path.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))


@pytest.mark.parametrize("shard_rows", [5, 1000])
def test_full_disk_while_appending_loses_nothing(tiny_disk, shard_rows):
    corpus = Corpus(tiny_disk / "corpus", shard_rows=shard_rows)
    ballast = tiny_disk / "ballast"
    ballast.write_bytes(bytes(100_000))
    count = fill_the_disk(corpus)
    assert count > 5
    ids = [row["id"] for row in Corpus(corpus.directory).rows()]
    # The refused row may be there (it was written, and the sealing after it failed), but no other is missing.
    assert ids in (
        [f"id{number:06d}" for number in range(count)],
        [f"id{number:06d}" for number in range(count + 1)],
    )
    ballast.unlink()
    again = Corpus(corpus.directory, shard_rows=shard_rows)
    for number in range(len(ids), len(ids) + 3):
        again.append(make_row(number, answer="short"))
    again.seal()
    assert [row["id"] for row in again.rows()] == [f"id{number:06d}" for number in range(len(ids) + 3)]


def test_full_disk_while_sealing_keeps_the_journal(tiny_disk):
    corpus = Corpus(tiny_disk / "corpus")
    for number in range(20):
        corpus.append(make_row(number, answer=ANSWER[:2000]))
    ballast = tiny_disk / "ballast"
    with pytest.raises(OSError, match="No space"):
        take_all_space(ballast)
    with pytest.raises(StorageError, match="disk is full"):
        corpus.seal()
    assert len(Corpus(corpus.directory)) == 20
    ballast.unlink()
    corpus.seal()
    assert (len(corpus), len(corpus.shards())) == (20, 1)


def test_full_disk_stops_collecting_and_a_later_run_asks_only_for_the_rest(tiny_disk):
    prompts = make_prompts(80)
    corpus = Corpus(tiny_disk / "corpus")
    ballast = tiny_disk / "ballast"
    ballast.write_bytes(bytes(100_000))
    teacher = FakeTeacher(lambda request: ANSWER)
    with pytest.raises(StorageError, match="disk is full"):
        run_collect(teacher, prompts, corpus, concurrency=2)
    kept = Corpus(corpus.directory).ids()
    assert 5 < len(kept) < 80
    ballast.unlink()
    second = FakeTeacher(lambda request: "short")
    summary = run_collect(second, prompts, Corpus(corpus.directory), concurrency=2)
    assert (summary.finished_before, summary.collected) == (len(kept), 80 - len(kept))
    assert kept.isdisjoint(id for batch in second.asked for id in batch)


def test_full_disk_while_filtering_leaves_the_source(tiny_disk, tmp_path):
    source = Corpus(tmp_path / "source")
    rows = [make_row(n, answer=f"{os.urandom(6000).hex()}", question=f"{n}") for n in range(60)]
    source.replace(rows)
    target = Corpus(tiny_disk / "kept")
    with pytest.raises(StorageError, match="disk is full"):
        filter_corpus(source, target, Filter(near_duplicates=None), held_out=[])
    assert len(source) == 60
    with pytest.raises(CorpusError, match="half written"):
        len(target)


@pytest.fixture
def public_place():
    """A directory that anybody may enter and read, and only its owner may write."""
    with tempfile.TemporaryDirectory() as place:
        Path(place).chmod(0o555)
        yield Path(place)
        Path(place).chmod(0o755)


def test_no_permission_to_write(public_place, nobody):
    for write in (
        lambda: Corpus(public_place / "corpus").append(make_row(0)),
        lambda: Corpus(public_place / "corpus").replace([make_row(0)]),
        lambda: run_collect(FakeTeacher(), make_prompts(1), Corpus(public_place / "corpus")),
    ):
        with pytest.raises(StorageError, match="no permission to write"):
            write()


@pytest.mark.parametrize("forbidden", ["shard-000000.parquet", "."])
def test_no_permission_to_read(public_place, request, forbidden):
    public_place.chmod(0o755)
    corpus = Corpus(public_place / "corpus")
    corpus.replace([make_row(0)])
    (corpus.directory / forbidden).chmod(0o000)
    request.getfixturevalue("nobody")
    with pytest.raises(CorpusError, match=f"no permission to read {corpus.directory / forbidden}"):
        list(corpus.rows())
