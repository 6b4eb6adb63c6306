"""The store: rows come back as they went in, at every moment of death, and never double."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import textwrap

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from corpus_helpers import make_row
from hypothesis import given, settings, strategies as st

from stillhouse.corpus import SCHEMA, Corpus
from stillhouse.corpus.collect.failures import Failures
from stillhouse.corpus.schema import OLD_MESSAGES
from stillhouse.corpus.store.layout import shard_path
from stillhouse.errors import CorpusError, StorageError


def ids(corpus: Corpus) -> list[str]:
    return [row["id"] for row in corpus.rows()]


def fill(directory, count: int, **options) -> Corpus:
    corpus = Corpus(directory, **options)
    for number in range(count):
        corpus.append(make_row(number))
    return corpus


def test_empty_corpus_has_no_rows(tmp_path):
    corpus = Corpus(tmp_path / "nothing")
    assert (len(corpus), list(corpus.rows()), corpus.ids()) == (0, [], set())
    corpus.seal()
    assert not (tmp_path / "nothing").exists()


def test_journal_is_read_before_it_is_sealed_and_reads_the_same_after(tmp_path):
    corpus = fill(tmp_path, 10, shard_rows=4)
    before = list(corpus.rows())
    corpus.seal()
    assert list(Corpus(tmp_path).rows()) == before
    assert [row["id"] for row in before] == [f"id{number:06d}" for number in range(10)]
    assert len(corpus) == 10
    assert [path.name for path in corpus.shards()] == [f"shard-00000{n}.parquet" for n in range(3)]
    assert not list(tmp_path.glob("journal-*"))


def test_missing_columns_are_null_and_reasoning_is_there_only_where_it_was(tmp_path):
    corpus = Corpus(tmp_path)
    thinking = make_row(1)
    thinking["messages"][1]["reasoning_content"] = "hm"
    corpus.append(make_row(0))
    corpus.append(thinking)
    corpus.seal()
    plain, thought = corpus.rows()
    assert set(plain) == set(SCHEMA.names)
    assert plain["cost_usd"] is None
    assert plain["messages"] == make_row(0)["messages"]
    assert thought["messages"] == thinking["messages"]


def test_rows_of_one_split_and_some_columns(tmp_path):
    corpus = Corpus(tmp_path)
    for number in range(6):
        corpus.append(make_row(number, split="held_out" if number % 3 == 0 else "train"))
    assert [row["id"] for row in corpus.rows("held_out")] == ["id000000", "id000003"]
    assert list(corpus.rows(columns=["id", "seed"]))[5] == {"id": "id000005", "seed": 5}
    corpus.close()


def test_appending_goes_on_after_sealing_and_after_closing(tmp_path):
    corpus = fill(tmp_path, 3)
    corpus.seal()
    corpus.append(make_row(3))
    corpus.close()
    again = Corpus(tmp_path)
    again.append(make_row(4))
    again.seal()
    assert ids(again) == [f"id{number:06d}" for number in range(5)]
    with pytest.raises(AssertionError, match="already"):
        again.append(make_row(2))
    again.close()


def test_every_torn_last_line_is_cut_and_nothing_else_is_lost(tmp_path):
    whole = tmp_path / "whole"
    fill(whole, 3).close()
    journal = (whole / "journal-000000.jsonl").read_bytes()
    third = journal.rindex(b"\n", 0, -1) + 1
    for cut in [*range(third, len(journal) - 1, 23), len(journal) - 1]:
        torn = tmp_path / f"torn{cut}"
        torn.mkdir()
        (torn / "journal-000000.jsonl").write_bytes(journal[:cut])
        corpus = Corpus(torn)
        assert ids(corpus) == ["id000000", "id000001"]
        corpus.append(make_row(2))
        corpus.seal()
        assert ids(corpus) == ["id000000", "id000001", "id000002"]


def test_death_between_shard_and_journal_leaves_no_duplicate(tmp_path):
    corpus = fill(tmp_path, 3)
    corpus.close()
    journal = tmp_path / "journal-000000.jsonl"
    saved = journal.read_bytes()
    corpus.seal()
    journal.write_bytes(saved)
    (tmp_path / ".shard-000001.parquet.abcd1234.tmp").write_bytes(b"half")
    reader = Corpus(tmp_path)
    assert (ids(reader), len(reader)) == (["id000000", "id000001", "id000002"], 3)
    reader.append(make_row(3))
    reader.seal()
    assert ids(reader) == [f"id{number:06d}" for number in range(4)]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".lock",
        "shard-000000.parquet",
        "shard-000001.parquet",
    ]


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.sampled_from(["append", "seal", "close", "die", "leftover"]), max_size=25),
    st.integers(min_value=1, max_value=4),
)
def test_any_history_of_appends_seals_and_deaths_keeps_every_row_once(tmp_path_factory, history, shard_rows):
    directory = tmp_path_factory.mktemp("history")
    corpus = Corpus(directory, shard_rows=shard_rows)
    count = 0
    for event in history:
        if event == "append":
            corpus.append(make_row(count))
            count += 1
        elif event == "seal":
            corpus.seal()
        elif event == "close":
            corpus.close()
        else:
            corpus.close()
            for path in directory.glob("journal-*"):
                with path.open("ab") as file:
                    file.write(b'{"id": "id0')
            if event == "leftover":
                directory.mkdir(exist_ok=True)
                (directory / ".shard-000009.parquet.0.tmp").write_bytes(b"x")
            corpus = Corpus(directory, shard_rows=shard_rows)
    expected = [f"id{number:06d}" for number in range(count)]
    assert ids(Corpus(directory)) == expected
    corpus.seal()
    assert ids(Corpus(directory)) == expected
    shutil.rmtree(directory)


@settings(max_examples=20, deadline=None)
@given(st.text(max_size=40), st.text(max_size=40))
def test_any_text_survives(tmp_path_factory, question, answer):
    directory = tmp_path_factory.mktemp("text")
    corpus = Corpus(directory)
    corpus.append(make_row(0, question=question, answer=answer))
    corpus.seal()
    (row,) = corpus.rows()
    assert [message["content"] for message in row["messages"]] == [question, answer]


def test_lone_surrogates_become_question_marks_instead_of_stopping_the_seal(tmp_path):
    corpus = Corpus(tmp_path)
    corpus.append(make_row(0, answer="broken \ud83d emoji"))
    corpus.seal()
    (row,) = corpus.rows()
    assert row["messages"][1]["content"] == "broken ? emoji"


def test_one_writer_at_a_time_and_readers_are_welcome(tmp_path):
    corpus = fill(tmp_path, 2)
    other = Corpus(tmp_path)
    with pytest.raises(StorageError, match="another process is writing"):
        other.append(make_row(9))
    assert len(other) == 2
    corpus.close()
    other.append(make_row(9))
    other.seal()
    assert len(corpus) == 3


@pytest.mark.parametrize("name", ["shard-copy.parquet", "shard-000000 (copy).parquet", "shard-7.parquet"])
def test_files_of_other_names_are_no_part_of_it(tmp_path, name):
    fill(tmp_path, 2).close()
    (tmp_path / name).write_bytes(b"")
    corpus = Corpus(tmp_path)
    corpus.append(make_row(9))
    corpus.seal()
    assert len(corpus) == 3


@pytest.mark.parametrize("line", [b"[" * 100_000, b"\0" * 50, b"[1]"], ids=["deep", "nulls", "list"])
def test_a_damaged_journal_names_the_line(tmp_path, line):
    (tmp_path / "journal-000000.jsonl").write_bytes(line + b"\n")
    with pytest.raises(CorpusError, match=r"journal-000000\.jsonl:1: the journal is damaged"):
        list(Corpus(tmp_path).rows())


@pytest.mark.parametrize("line", ['{"x": 1}', '{"id": "a"}'])
def test_a_damaged_list_of_failures_is_an_error(tmp_path, line):
    (tmp_path / "failures.jsonl").write_text(line + "\n")
    with pytest.raises(CorpusError, match="without id or final"):
        Failures(tmp_path).final()


@pytest.mark.parametrize("place", ["/dev/null/x", "/" + "a" * 300])
def test_a_directory_that_cannot_be_made_is_an_error(place):
    with pytest.raises((CorpusError, StorageError)):
        Corpus(place).lock()


def test_lock_of_a_dead_process_is_gone(tmp_path):
    script = textwrap.dedent(
        """
        import os, sys
        sys.path.insert(0, sys.argv[2])
        from corpus_helpers import make_row
        from stillhouse.corpus import Corpus
        corpus = Corpus(sys.argv[1])
        corpus.append(make_row(0))
        os.kill(os.getpid(), 9)
        """
    )
    here = __file__.rpartition("/store/")[0]
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path), here], check=False)
    assert done.returncode == -9
    corpus = Corpus(tmp_path)
    corpus.append(make_row(1))
    corpus.seal()
    assert ids(corpus) == ["id000000", "id000001"]


@pytest.mark.parametrize("damage", ["text", "cut", "empty", "column", "type"])
def test_damaged_shard_is_named(tmp_path, damage):
    fill(tmp_path, 5).seal()
    shard = tmp_path / "shard-000000.parquet"
    if damage == "text":
        shard.write_text("this is no parquet")
    elif damage == "cut":
        shard.write_bytes(shard.read_bytes()[:-20])
    elif damage == "empty":
        shard.write_bytes(b"")
    elif damage == "column":
        pq.write_table(pq.read_table(shard).drop_columns(["messages"]), shard)
    else:
        table = pq.read_table(shard)
        index = table.schema.get_field_index("sample")
        pq.write_table(table.set_column(index, "sample", pa.array(["0"] * 5)), shard)
    for read in (lambda: list(Corpus(tmp_path).rows()), lambda: len(Corpus(tmp_path))):
        with pytest.raises(CorpusError, match=r"shard-000000\.parquet"):
            read()


def test_damage_inside_a_shard_is_named(tmp_path):
    corpus = Corpus(tmp_path)
    for number in range(400):
        corpus.append(make_row(number, answer=f"{number * 7919 % 1009} " * 20))
    corpus.seal()
    shard = tmp_path / "shard-000000.parquet"
    data = bytearray(shard.read_bytes())
    data[200 : len(data) // 2] = bytes(len(data) // 2 - 200)
    shard.write_bytes(data)
    with pytest.raises(CorpusError, match=r"shard-000000\.parquet"):
        list(Corpus(tmp_path).rows())


def test_damaged_journal_line_is_named(tmp_path):
    fill(tmp_path, 3).close()
    journal = tmp_path / "journal-000000.jsonl"
    lines = journal.read_text().splitlines(keepends=True)
    journal.write_text(lines[0] + "{oops}\n" + lines[2])
    with pytest.raises(CorpusError, match=r"journal-000000\.jsonl:2"):
        list(Corpus(tmp_path).rows())
    journal.write_text(lines[0] + json.dumps([1]) + "\n")
    with pytest.raises(CorpusError, match=r"journal-000000\.jsonl:2"):
        len(Corpus(tmp_path))


def test_replace_writes_anew_and_a_half_written_corpus_is_refused(tmp_path):
    corpus = fill(tmp_path, 9, shard_rows=4)
    corpus.close()
    assert corpus.replace(make_row(number) for number in range(100, 106)) == 6
    assert ids(corpus) == [f"id{number:06d}" for number in range(100, 106)]
    assert len(corpus.shards()) == 2

    def stops():
        yield from (make_row(number) for number in range(5))
        raise RuntimeError("killed here")

    with pytest.raises(RuntimeError):
        corpus.replace(stops())
    with pytest.raises(CorpusError, match="half written"):
        list(corpus.rows())
    corpus.replace([make_row(1)])
    assert ids(corpus) == ["id000001"]


MEMORY = """
import resource, sys
sys.path.insert(0, sys.argv[2])
from corpus_helpers import make_row
from stillhouse.corpus import Corpus

def rss_mib():
    for line in open("/proc/self/status"):
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1024

corpus = Corpus(sys.argv[1])
count, peak, base = 0, 0.0, 0.0
for row in corpus.rows():
    count += 1
    if count == 2000:
        base = rss_mib()
    if count % 2000 == 0:
        peak = max(peak, rss_mib())
print(count, base, peak)
"""


def test_memory_stays_bounded_while_two_hundred_thousand_rows_are_read(tmp_path):
    """The rows are 400 MB as text; a reader may grow by 48 MiB over what it holds after 2,000 of them."""
    corpus = Corpus(tmp_path)
    answer = "word " * 400
    first = Corpus(tmp_path / "first")
    first.replace(make_row(number, answer=f"{number} {answer}") for number in range(4096))
    (shard,) = first.shards()
    for number in range(49):
        shutil.copy(shard, tmp_path / f"shard-{number:06d}.parquet")
    assert len(corpus) == 49 * 4096
    here = __file__.rpartition("/store/")[0]
    done = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path), here], check=True, capture_output=True, text=True
    )
    count, base, peak = map(float, done.stdout.split())
    assert count == 49 * 4096
    assert peak - base < 48


def test_tools_calls_and_weights_survive_a_shard(tmp_path):
    call = {"type": "function", "function": {"name": "f", "arguments": {"a": None, "b": [1, "x"]}}}
    messages = [
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": "", "tool_calls": [call], "weight": 0},
        {"role": "tool", "content": "r", "name": "f", "tool_call_id": "1"},
        {"role": "assistant", "content": "a", "reasoning_content": "hm"},
    ]
    stored = make_row(1) | {"messages": messages, "tools": [{"type": "function", "function": {"name": "f"}}]}
    corpus = Corpus(tmp_path)
    corpus.append(stored)
    (from_journal,) = corpus.rows()
    corpus.seal()
    (from_shard,) = corpus.rows()
    assert from_journal == from_shard
    assert (from_shard["messages"], from_shard["tools"]) == (messages, stored["tools"])


def test_a_shard_of_an_older_version_is_read(tmp_path):
    names = [field for field in SCHEMA if field.name not in ("messages", "tools")]
    old = pa.schema([pa.field("messages", OLD_MESSAGES), *names])
    pq.write_table(pa.Table.from_pylist([make_row(1)], old), shard_path(tmp_path, 0))
    (read,) = Corpus(tmp_path).rows()
    assert (read["messages"], read["tools"]) == (make_row(1)["messages"], None)
    assert [row["tools"] for row in Corpus(tmp_path).rows("train", columns=["split", "tools"])] == [None]
