"""An author's way, by the command: draw versions, publish, ask who read them and who did not."""

import json
import random

import pytest
import torch
from conftest import WORDS
from still_command import still

from stillhouse.models import load_weights
from stillhouse.trace.detectors.canaries import read_canaries
from stillhouse.trace.detectors.rephrasings import draw_version, read_versions

TEXTS, VERSIONS = 16, 6


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A directory with a key, versions, and what `still trace draw` made of them."""
    place, chance = tmp_path_factory.mktemp("author"), random.Random(0)
    (place / "author.key").write_text("5a" * 32 + "\n")
    lines = [
        {"id": f"poem {n}", "versions": [" ".join(chance.choices(WORDS, k=14)) for _ in range(VERSIONS)]}
        for n in range(TEXTS)
    ]
    (place / "versions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = still("trace", "draw", "versions.jsonl", "--key", "author.key", cwd=place)
    assert told.returncode == 0, told.stderr
    return place, told


def reader(teacher, texts, place):
    """The tiny teacher, once it has read the texts again and again."""
    weights = load_weights(str(teacher))
    ids = [torch.tensor(weights.tokenizer.encode(text)) for text in texts]
    optimizer = torch.optim.AdamW(weights.model.parameters(), lr=3e-3)
    weights.model.train()
    for _ in range(16):
        rows = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-100)
        loss = weights.model(rows.clamp(min=0), attention_mask=(rows >= 0).long(), labels=rows).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    weights.model.save_pretrained(place)
    weights.tokenizer.save_pretrained(place)
    return place


def test_the_key_decides_and_the_file_is_secret(drawn):
    place, told = drawn
    texts = read_versions(place / "texts.jsonl")
    assert [text.published for text in texts] == [
        draw_version(b"Z" * 32, text.id, VERSIONS) for text in texts
    ]
    assert len({text.published for text in texts}) > 2
    first = f"poem 0: publish version {texts[0].published + 1} of {VERSIONS}"
    assert told.stdout.splitlines()[0] == first and "5a5a" not in told.stdout + told.stderr
    assert (place / "texts.jsonl").stat().st_mode & 0o777 == 0o600
    again = still("trace", "draw", "versions.jsonl", "--key", "author.key", cwd=place)
    assert again.returncode == 2 and "never overwritten" in again.stderr


def test_a_model_that_read_the_published_versions_is_found_and_another_is_not(drawn, tiny_teacher):
    place, _ = drawn
    texts = read_versions(place / "texts.jsonl")
    guilty = reader(tiny_teacher, [text.versions[text.published] for text in texts], place / "guilty")
    for suspect, out in ((guilty, "found"), (tiny_teacher, "nothing")):
        told = still(
            "trace", "--suspect", suspect, "--texts", "texts.jsonl", "--out", out, "--json", cwd=place
        )
        assert told.returncode == 0, told.stderr
        (teacher,) = json.loads(told.stdout)["teachers"]
        assert [part["test"] for part in teacher["tests"]] == ["rephrasings"]
        assert (teacher["verdict"]["outcome"] == "hard") == (suspect == guilty), teacher["verdict"]
        assert still("trace", "verify", out, cwd=place).returncode == 0
        assert ("trained on these texts" in teacher["verdict"]["sentence"]) == (suspect == guilty)
    page = (place / "found" / "report.html").read_text()
    assert "the suspect was trained on these texts as they were published" in page
    assert "delivered to these accounts" not in page


def test_what_a_trace_would_leave_out_is_refused_when_it_is_drawn(drawn):
    place, _ = drawn
    long, other = "a line of at least twenty characters", "another line of more than twenty"
    lines = [
        {"id": "haiku", "versions": [long, "too short"]},
        {"id": "ode", "versions": [other, long]},
    ]
    (place / "short.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = still("trace", "draw", "short.jsonl", "--key", "author.key", "--out", "no.jsonl", cwd=place)
    assert told.returncode == 1 and not (place / "no.jsonl").exists()
    assert "haiku: version 2 has 9 of at least 20 characters" in told.stderr
    assert "ode: version 2 is also a version of haiku" in told.stderr
    # files that were drawn by an earlier version are still read
    lines = [line | {"published": 0, "draw_key": "5a" * 16} for line in lines]
    (place / "old.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert len(read_versions(place / "old.jsonl")) == 2


def test_versions_that_were_not_drawn_are_no_log(drawn, tiny_teacher):
    place, _ = drawn
    told = still("trace", "--suspect", tiny_teacher, "--texts", "versions.jsonl", cwd=place)
    said = " ".join(told.stderr.split())
    assert told.returncode == 1 and "not made by `still trace draw`" in said
    assert "still trace draw versions.jsonl --key author.key" in said
    assert not (place / "evidence" / "commitments.json").exists(), "the next try may commit"


def test_too_few_texts_for_hard_evidence_are_warned_of(drawn):
    place, told = drawn
    assert "hard evidence" not in told.stderr
    text = {"id": "one", "versions": ["the first of two long versions", "the second of two long versions"]}
    (place / "one.jsonl").write_text(json.dumps(text) + "\n")
    told = still("trace", "draw", "one.jsonl", "--key", "author.key", "--out", "one-drawn.jsonl", cwd=place)
    assert told.returncode == 0 and "hard evidence needs 1,000" in " ".join(told.stderr.split())


def test_texts_are_a_trace_of_their_own(drawn, tiny_teacher):
    place, _ = drawn
    told = still(
        "trace", "--suspect", tiny_teacher, "--texts", "texts.jsonl", "--log", "texts.jsonl", cwd=place
    )
    assert told.returncode == 2 and "--texts is for a trace of its own" in told.stderr


def test_canaries_by_the_command_are_those_of_the_key(tmp_path):
    (tmp_path / "k").write_text("5a" * 32)
    given = ("--key", "k", "--account", "acme", "--account", "zeta", "--count", "3", "--decoys", "4")
    told = still("trace", "canaries", *given, cwd=tmp_path)
    sets = read_canaries(tmp_path / "canaries.jsonl")
    assert told.stdout.splitlines() == [f"{one.account}: {one.canary}" for one in sets]
    assert [one.account for one in sets] == ["acme"] * 3 + ["zeta"] * 3
    assert all(len(one.decoys) == 4 for one in sets)
    again = still("trace", "canaries", *given, "--out", "again.jsonl", cwd=tmp_path)
    assert again.stdout == told.stdout
    refused = still("trace", "canaries", *given, cwd=tmp_path)
    assert refused.returncode == 2 and "never overwritten" in refused.stderr
