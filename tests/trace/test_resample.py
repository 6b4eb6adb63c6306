"""Resamples: drawing, resuming, refusals, and the count of public outputs."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pyarrow.parquet as pq
import pytest

from stillhouse.errors import CapabilityError, CorpusError, IntegrityError
from stillhouse.models import Request, Sampling, load_tokenizer, open_model
from stillhouse.stats import rank_test
from stillhouse.trace.delivered_log import read_log
from stillhouse.trace.resample import LogMark, count_public, log_metadata, read_resamples, resample
from stillhouse.watermark import Mark, account_key, detect, key_fingerprint


def write_log(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def delivered(teacher, count, *, temperature=1.0, max_tokens=24, marks=None):
    """A log of answers that ``teacher`` really gave."""
    model = open_model(str(teacher))
    requests = [
        Request(
            f"row{n}",
            [{"role": "user", "content": f"{n} the still takes"}],
            Sampling(temperature=temperature, top_p=0.95, max_tokens=max_tokens, seed=1000 + n),
            marks and marks[n],
        )
        for n in range(count)
    ]
    replies = asyncio.run(model.generate(requests))
    asyncio.run(model.close())
    return [
        {
            "id": request.id,
            "account": "north",
            "messages": [*request.messages, {"role": "assistant", "content": reply.text}],
            "temperature": temperature,
            "top_p": 0.95,
            "max_tokens": max_tokens,
            "teacher_hash": model.fingerprint,
        }
        for request, reply in zip(requests, replies, strict=True)
    ]


@pytest.fixture(scope="module")
def log_path(tiny_teacher, tmp_path_factory):
    return write_log(tmp_path_factory.mktemp("log") / "log.jsonl", delivered(tiny_teacher, 120))


def test_each_row_gets_its_draws_with_its_own_settings_and_seed(tiny_teacher, log_path, tmp_path):
    log = read_log(log_path)
    out = tmp_path / "resamples.parquet"
    found = resample(str(tiny_teacher), log, 3, 7, out)
    rows = pq.read_table(out).to_pylist()
    assert [(row["id"], row["draw"]) for row in rows] == [(r.id, d) for r in log.rows for d in (1, 2, 3)]
    assert {(row["temperature"], row["top_p"], row["max_tokens"]) for row in rows} == {(1.0, 0.95, 24)}
    assert len({row["seed"] for row in rows}) == len(rows)
    assert {row["teacher_hash"] for row in rows} == log.teacher_hashes == set(found.teacher_hashes)
    assert all(len(set(texts)) > 1 for texts in found.texts.values())
    again = resample(str(tiny_teacher), log, 3, 7, tmp_path / "again.parquet")
    assert again.texts == found.texts, "the same seed draws the same outputs"
    assert resample(str(tiny_teacher), log, 3, 8, tmp_path / "other.parquet").texts != found.texts
    assert not list(tmp_path.glob("*.journal"))


def test_delivered_outputs_and_resamples_are_exchangeable(tiny_teacher, log_path, tmp_path):
    """Lengths and letter counts rank alike in delivered outputs and resamples."""
    log = read_log(log_path)
    found = resample(str(tiny_teacher), log, 4, 3, tmp_path / "r.parquet")
    texts = [[row.output, *found.texts[row.id]] for row in log.rows]
    for measure in (len, lambda text: text.count("e"), lambda text: text.count(" ")):
        scores = np.array([[float(measure(text)) for text in row] for row in texts])
        assert 0.001 < rank_test(scores).p_normal < 0.999


def test_a_killed_drawing_goes_on_and_gives_the_same(tiny_teacher, log_path, tmp_path):
    log = read_log(log_path)
    whole = resample(str(tiny_teacher), log, 12, 5, tmp_path / "whole.parquet")
    out = tmp_path / "killed.parquet"
    program = (
        "import sys; from stillhouse.trace.delivered_log import read_log; "
        "from stillhouse.trace.resample import resample; "
        "resample(sys.argv[1], read_log(sys.argv[2]), 12, 5, sys.argv[3])"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", program, str(tiny_teacher), str(log_path), str(out)], stderr=subprocess.DEVNULL
    )
    journal = out.with_name(out.name + ".journal")
    for _ in range(1200):
        if journal.exists() and journal.read_bytes().count(b"\n") > 200:
            break
        time.sleep(0.05)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert journal.exists() and not out.exists()
    kept = journal.read_bytes().count(b"\n") - 1
    assert kept >= 200
    lines = journal.read_bytes().splitlines(keepends=True)[:201]  # a kill in the midst of a batch
    journal.write_bytes(b"".join(lines) + b'{"id": "row0", "dr')  # and of a line
    assert resample(str(tiny_teacher), log, 12, 5, out).texts == whole.texts
    with pytest.raises(CorpusError, match="other resamples"):
        resample(str(tiny_teacher), log, 13, 5, out)


def test_another_teacher_is_refused_by_both_fingerprints_unless_allowed(tiny_teacher, log_path, tmp_path):
    rows = [json.loads(line) | {"teacher_hash": "f" * 64} for line in log_path.read_text().splitlines()[:5]]
    log = read_log(write_log(tmp_path / "log.jsonl", rows))
    model = open_model(str(tiny_teacher))
    asyncio.run(model.close())
    with pytest.raises(IntegrityError) as refused:
        resample(str(tiny_teacher), log, 2, 0, tmp_path / "r.parquet")
    assert "f" * 64 in str(refused.value) and model.fingerprint in str(refused.value)
    found = resample(str(tiny_teacher), log, 2, 0, tmp_path / "r.parquet", allow_other_teacher=True)
    facts = log_metadata(log, found)
    assert facts["log_teachers"] == ["f" * 64] and facts["resample_teachers"] == [model.fingerprint]


def test_a_file_of_other_resamples_is_never_overwritten(tiny_teacher, log_path, tmp_path):
    log = read_log(log_path)
    out = tmp_path / "r.parquet"
    out.write_bytes(b"something else")
    with pytest.raises(CorpusError, match="not a file of resamples"):
        resample(str(tiny_teacher), log, 1, 0, out)
    assert out.read_bytes() == b"something else"
    with pytest.raises(CorpusError):
        read_resamples(tmp_path / "absent.parquet")
    (tmp_path / "n.parquet.journal").write_text(json.dumps({"seed": 1}) + "\n")
    with pytest.raises(CorpusError, match="another run"):
        resample(str(tiny_teacher), log, 1, 0, tmp_path / "n.parquet")


def test_rows_that_share_an_id_are_refused(tiny_teacher, log_path, tmp_path):
    rows = [json.loads(line) | {"id": "same"} for line in log_path.read_text().splitlines()[:3]]
    with pytest.raises(CorpusError, match="several rows"):
        resample(str(tiny_teacher), read_log(write_log(tmp_path / "l.jsonl", rows)), 1, 0, tmp_path / "r")


def test_an_output_that_stands_alone_is_drawn_from_the_begin_token(tiny_teacher, tmp_path):
    rows = [{"output": "the still takes a large spirit apart", "max_tokens": 8}]
    log = read_log(write_log(tmp_path / "log.jsonl", rows))
    found = resample(str(tiny_teacher), log, 4, 1, tmp_path / "r.parquet")
    [texts] = found.texts.values()
    assert len(texts) == 4 and len(set(texts)) > 1


def test_public_outputs_are_counted_by_words_in_a_row():
    sentence = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen"
    outputs = [
        f"Well: {sentence}!",
        "a text that nobody has ever published anywhere at all",
        sentence.upper(),
    ]
    public = ["nothing here", f"Somebody wrote: “{sentence}”, and more."]
    assert count_public(outputs, public) == {"found": 2, "outputs": 3, "texts": 2, "words": 13}
    assert count_public(outputs, [" ".join(sentence.split()[:12])])["found"] == 0
    assert count_public(outputs, ["ever published anywhere"], run=3)["found"] == 1


@pytest.mark.slow
def test_a_teacher_in_llama_cpp_draws_too(tmp_path):
    rows = [
        {
            "id": f"r{n}",
            "prompt": f"Name {n} colours.",
            "output": "Red, blue, green and yellow.",
            "max_tokens": 12,
        }
        for n in (2, 3)
    ]
    log = read_log(write_log(tmp_path / "log.jsonl", rows))
    found = resample("embedded:smollm2", log, 3, 1, tmp_path / "r.parquet")
    assert sorted(found.texts) == ["r2", "r3"] and found.failed == 0
    for texts in found.texts.values():
        assert len(texts) == 3 and len(set(texts)) > 1 and all(texts)
    again = read_resamples(tmp_path / "r.parquet", {"draws": 3, "seed": 1})
    assert again.texts == found.texts


KEY, MASTER = b"k" * 32, b"m" * 32


@pytest.fixture(scope="module")
def marked_log(tiny_teacher, tmp_path_factory):
    rows = delivered(tiny_teacher, 120, marks=[Mark(KEY)] * 120)
    return read_log(write_log(tmp_path_factory.mktemp("marked") / "log.jsonl", rows))


def prefers_green(mark, tokenizer, texts):
    """The rank test of a suspect that knows only the preference of the mark."""
    scores = [
        [detect(mark, [tokenizer.encode(text, add_special_tokens=False)]).mean for text in row]
        for row in texts
    ]
    return rank_test(np.array(scores))


def test_resamples_of_a_marked_log_carry_its_mark(tiny_teacher, marked_log, tmp_path):
    """A suspect that learned the mark elsewhere prefers a marked log to plain resamples only."""
    tokenizer, _ = load_tokenizer(str(tiny_teacher))
    mark = LogMark(Mark(KEY))
    alike = resample(str(tiny_teacher), marked_log, 3, 7, tmp_path / "marked.parquet", mark=mark)
    plain = resample(str(tiny_teacher), marked_log, 3, 7, tmp_path / "plain.parquet")
    assert (alike.marks, plain.marks) == ((Mark(KEY).public_parameters,), ())
    assert log_metadata(marked_log, alike)["resample_marks"] == [Mark(KEY).public_parameters]
    drawn = [tokenizer.encode(text, add_special_tokens=False) for row in alike.texts.values() for text in row]
    assert detect(Mark(KEY), drawn).p_value < 1e-9 < 1e-3 < detect(Mark(MASTER), drawn).p_value
    texts = {
        name: [[row.output, *held.texts[row.id]] for row in marked_log.rows]
        for name, held in {"alike": alike, "plain": plain}.items()
    }
    assert prefers_green(Mark(KEY), tokenizer, texts["plain"]).p < 1e-6
    assert 0.001 < prefers_green(Mark(KEY), tokenizer, texts["alike"]).p_normal < 0.999


def test_each_account_has_its_own_mark(tiny_teacher, log_path, tmp_path):
    log = read_log(log_path)
    rows = tuple(replace(row, account="south" if n % 2 else "north") for n, row in enumerate(log.rows))
    log = replace(log, rows=rows)
    tokenizer, _ = load_tokenizer(str(tiny_teacher))
    mark = LogMark(Mark(MASTER), by_account=True)
    found = resample(str(tiny_teacher), log, 2, 7, tmp_path / "r.parquet", mark=mark)
    names = ("north", "south")
    assert {one["key"] for one in found.marks} == {
        key_fingerprint(account_key(MASTER, name)) for name in names
    }
    for name, other in (names, names[::-1]):
        ids = [
            tokenizer.encode(text, add_special_tokens=False)
            for row in rows
            if row.account == name
            for text in found.texts[row.id]
        ]
        assert detect(Mark(account_key(MASTER, name)), ids).p_value < 1e-6
        assert detect(Mark(account_key(MASTER, other)), ids).p_value > 1e-3
    nameless = replace(log, rows=(replace(rows[0], account=None),))
    with pytest.raises(CorpusError, match="names no account"):
        resample(str(tiny_teacher), nameless, 2, 7, tmp_path / "n.parquet", mark=mark)


def test_marked_and_plain_resamples_are_not_taken_for_each_other(tiny_teacher, marked_log, tmp_path):
    out, mark = tmp_path / "r.parquet", LogMark(Mark(KEY))
    resample(str(tiny_teacher), marked_log, 1, 7, out)
    with pytest.raises(CorpusError, match="other resamples: marks"):
        resample(str(tiny_teacher), marked_log, 1, 7, out, mark=mark)
    out.unlink()
    resample(str(tiny_teacher), marked_log, 1, 7, out, mark=mark)
    with pytest.raises(CorpusError, match="other resamples: marks"):
        resample(str(tiny_teacher), marked_log, 1, 7, out)


def test_a_teacher_that_others_sample_cannot_mark(marked_log, tmp_path):
    with pytest.raises(CapabilityError, match="cannot be watermarked"):
        resample(
            "embedded:smollm2", marked_log, 1, 7, tmp_path / "r.parquet",
            mark=LogMark(Mark(KEY)), allow_other_teacher=True,
        )  # fmt: skip
