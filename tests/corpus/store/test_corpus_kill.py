"""kill -9 at any moment: what was finished is never asked again, and nothing is missing or double."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest
from corpus_helpers import make_prompts
from misbehaving_server import answer_to

from stillhouse.corpus import Corpus

SERVER = Path(__file__).parents[2] / "misbehaving_server.py"
COUNT, SAMPLES, CONCURRENCY, KILLS = 120, 2, 8, 3
COLLECT = f"""
import asyncio, sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
from corpus_helpers import make_prompts
from stillhouse.corpus import Corpus, collect_answers
from stillhouse.models import open_model
from stillhouse.recipe import Collect, Teacher

async def main(url, directory):
    model = open_model(f"api:{{url}}#misbehaving-1", timeout_s=2)
    try:
        await collect_answers(
            model,
            [("train", prompt) for prompt in make_prompts({COUNT})],
            Corpus(directory, shard_rows=20),
            Collect(samples={SAMPLES}, concurrency={CONCURRENCY}),
            teacher=Teacher(model=model.reference), terms="mit", seed=0,
        )
    finally:
        await model.close()

asyncio.run(main(*sys.argv[1:]))
"""


@pytest.fixture
def server(tmp_path):
    """Address and log of a server that pushes back and drops connections now and then."""
    log = tmp_path / "served.jsonl"
    command = [sys.executable, str(SERVER), "--port", "0", "--faults", "0.1", "--delay", "0.01"]
    options = ["--kinds", "429,500,cut,json", "--most-faults", "2", "--log", str(log)]
    process = subprocess.Popen([*command, *options], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    yield process.stdout.readline().strip(), log
    process.terminate()
    process.wait()
    process.stdout.close()


def start(url: str, directory: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"OPENAI_API_KEY": "none"}
    return subprocess.Popen(
        [sys.executable, "-c", COLLECT, url, str(directory)],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )


def served(log: Path) -> Counter[str]:
    """How often each request (prompt and seed, in the server's own name for it) was answered."""
    lines = log.read_text().splitlines() if log.exists() else []
    entries = [json.loads(line) for line in lines]
    return Counter(entry["id"].rpartition("-")[0] for entry in entries if entry["outcome"] == "ok")


def stored(directory: Path) -> Counter[str]:
    """How often each answered request occurs in the corpus."""
    rows = Corpus(directory).rows(columns=["request_id"])
    return Counter(row["request_id"].rpartition("-")[0] for row in rows)


def test_killed_again_and_again_it_still_ends_complete(server, tmp_path):
    url, log = server
    directory = tmp_path / "corpus"
    draw = random.Random(11)
    for _ in range(KILLS):
        before = stored(directory)
        answered_before = served(log)
        process = start(url, directory)
        target = sum(answered_before.values()) + draw.randint(10, 50)
        while sum(served(log).values()) < target and process.poll() is None:
            time.sleep(draw.random() * 0.02)
        process.kill()
        process.wait()
        assert process.stderr is not None
        process.stderr.close()
        after = stored(directory)
        assert before <= after  # nothing that was stored is gone
        assert max(after.values()) == 1
        repeated = [name for name in before if served(log)[name] != answered_before[name]]
        assert repeated == []  # and none of it was asked again
        assert len(served(log).keys() - after.keys()) <= CONCURRENCY  # only what was in flight
    process = start(url, directory)
    _, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert set(stored(directory).values()) == {1}
    assert sum(stored(directory).values()) == COUNT * SAMPLES
    assert sum(served(log).values()) - COUNT * SAMPLES <= KILLS * CONCURRENCY
    for row in Corpus(directory).rows():
        question, answer = row["messages"]
        assert answer["content"] == answer_to(question["content"], row["seed"])
    expected = {(prompt.id, sample) for prompt in make_prompts(COUNT) for sample in range(SAMPLES)}
    assert {(row["prompt_id"], row["sample"]) for row in Corpus(directory).rows()} == expected


def test_ctrl_c_seals_what_is_there_and_raises(server, tmp_path):
    url, log = server
    process = start(url, tmp_path / "corpus")
    while sum(served(log).values()) < 60 and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert "KeyboardInterrupt" in errors
    assert process.returncode == -signal.SIGINT
    corpus = Corpus(tmp_path / "corpus")
    assert not list(corpus.directory.glob("journal-*"))
    assert 60 - CONCURRENCY <= len(corpus) < COUNT * SAMPLES
    assert len(served(log).keys() - stored(corpus.directory).keys()) <= CONCURRENCY
