"""Rejection sampling on a corpus made by hand, and prompts from reasoning-gym."""

from __future__ import annotations

import json

import pyarrow.parquet as pq
import pytest

from stillhouse.corpus import Corpus, load_prompts, read_pass_rates, select_corpus
from stillhouse.corpus.schema import REJECT_SCHEMA
from stillhouse.errors import CorpusError, MissingExtraError
from stillhouse.recipe import Select, Verifier
from stillhouse.verifiers import open_verifiers


def row(prompt: str, sample: int, text: str, *, split: str = "train") -> dict:
    messages = [
        {"role": "user", "content": "?"},
        {"role": "assistant", "content": text, "reasoning_content": "5"},
    ]
    tags = json.dumps({"answer": "4"})
    return {"id": f"{prompt}{sample}", "prompt_id": prompt, "sample": sample, "split": split} | {
        "messages": messages,
        "tags": tags,
    }


@pytest.fixture
def kept(tmp_path) -> Corpus:
    corpus = Corpus(tmp_path / "kept")
    corpus.replace(
        [
            *(row("a", n, text) for n, text in enumerate(["so it is 4", "4", "5", "it is 4"])),
            *(row("b", n, text) for n, text in enumerate(["1", "2", "2", "4"])),
            row("c", 0, "9"),
            row("h", 0, "wrong", split="held_out"),
        ]
    )
    rejects = Corpus(tmp_path / "rejects", schema=REJECT_SCHEMA)
    rejects.append(row("z", 0, "") | {"reason": "empty", "detail": ""})
    rejects.seal()
    return corpus


def select(kept: Corpus, settings: Select):
    target = Corpus(kept.directory.parent / "selected")
    with open_verifiers([Verifier(kind="numeric", extract="last_number")]) as verifiers:
        summary = select_corpus(kept, target, settings, verifiers, samples=4)
    rejects = Corpus(kept.directory.parent / "rejects", schema=REJECT_SCHEMA).rows()
    return summary, [r["id"] for r in target.rows()], {r["id"]: r["reason"] for r in rejects}


def test_verified_answers_are_selected_the_shorter_first(kept):
    summary, chosen, rejects = select(kept, Select(per_prompt=2))
    assert chosen == ["a1", "a3", "b3", "h0"]
    assert rejects["a0"] == "surplus of a prompt"
    assert rejects["a2"] == rejects["c0"] == "reward too low"
    assert rejects["z0"] == "empty"
    assert (summary.scored, summary.selected, summary.held_out, summary.solved) == (9, 3, 1, 2)
    assert summary.pass_at_1 is not None and summary.consensus_at_k is not None
    assert summary.pass_at_1["value"] == pytest.approx((3 / 4 + 1 / 4 + 0) / 3)
    assert summary.consensus_at_k["value"] == 0.5  # a: 4 wins; b: 2 wins; c has too few answers
    assert summary.pass_at_k is not None and summary.pass_at_k["value"] == 1
    scores = pq.read_table(kept.directory.parent / "scores.parquet").to_pylist()
    assert {s["prompt_id"]: s["pass_rate"] for s in scores} == {"a": 0.75, "b": 0.25, "c": 0}
    assert read_pass_rates(kept) == {"a": 0.75, "b": 0.25, "c": 0}
    assert [s["reward"] for s in scores][:4] == [1, 1, 0, 1]


def test_another_selection_replaces_the_first_and_its_rejects(kept):
    select(kept, Select())
    _, chosen, rejects = select(kept, Select(min_reward=0, per_prompt=None, prefer="first"))
    assert len(chosen) == 10
    assert rejects == {"z0": "empty"}


EVEN = """
def even(row):
    number = int(row["text"])
    if number == 7:
        raise ValueError("seven")
    row["messages"].clear()
    return number % 2 == 0
"""


def test_a_function_in_the_current_directory_keeps_every_answer_that_it_accepts(tmp_path, monkeypatch):
    (tmp_path / "my_verifier.py").write_text(EVEN)
    monkeypatch.chdir(tmp_path)
    kept = Corpus(tmp_path / "kept")
    kept.replace(row("a", n, str(n)) for n in range(10))
    verifier = Verifier(kind="function", function="my_verifier:even")
    with open_verifiers([verifier]) as verifiers:
        summary = select_corpus(
            kept, Corpus(tmp_path / "selected"), Select(per_prompt=None), verifiers, samples=10
        )
    chosen = list(Corpus(tmp_path / "selected").rows())
    assert sorted(r["id"] for r in chosen) == [f"a{n}" for n in (0, 2, 4, 6, 8)]
    assert all(len(r["messages"]) == 2 for r in chosen)
    assert (summary.rejected["reward too low"], summary.failures) == (5, {"function": 1})
    rejects = {r["id"]: r["detail"] for r in Corpus(tmp_path / "rejects", schema=REJECT_SCHEMA).rows()}
    assert "ValueError: seven" in rejects["a7"]


def test_prompts_from_reasoning_gym_are_the_same_for_the_same_seed_and_check_out():
    source = "reasoning_gym:chain_sum?size=5&seed=7&min_terms=2&max_terms=2"
    prompts = load_prompts(source)
    assert len(prompts) == 5
    assert prompts == load_prompts(source)
    tags = prompts[0].tags
    assert tags["dataset"] == "chain_sum"
    from reasoning_gym import create_dataset

    oracle = create_dataset("chain_sum", size=5, seed=7, min_terms=2, max_terms=2)
    assert [p.tags["answer"] for p in prompts] == [entry["answer"] for entry in oracle]
    assert json.loads(tags["entry"])["question"] == prompts[0].messages[0]["content"]


def test_a_dataset_that_is_not_there_and_an_extra_that_is_missing(monkeypatch):
    with pytest.raises(CorpusError, match="chain_sun") as caught:
        load_prompts("reasoning_gym:chain_sun")
    assert "chain_sum" in str(caught.value.hint)
    with pytest.raises(CorpusError, match="no_such_key"):
        load_prompts("reasoning_gym:chain_sum?no_such_key=1")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="reasoning-gym"):
        load_prompts("reasoning_gym:chain_sum")
