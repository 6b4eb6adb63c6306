"""pass@1 and majority vote from a model's own answers, scored by a verifier with a known rule."""

from __future__ import annotations

from dataclasses import replace

import pytest

from stillhouse.corpus import Prompt
from stillhouse.evaluate import results_table, sample_and_score
from stillhouse.evaluate.compare import Candidate
from stillhouse.models import Reply, load_weights
from stillhouse.recipe import Evaluate, Verifier
from stillhouse.verifiers import open_verifiers

PROMPTS = [
    Prompt(f"p{n}", [{"role": "user", "content": f"{n}?"}], "s", {"answer": answer})
    for n, answer in enumerate(["a", "b", "c"])
]
SETTINGS = Evaluate(samples=4, sample_tokens=6)


def test_estimates_are_those_of_a_count_by_hand(monkeypatch):
    said = iter(["a", "a", "x", None, "x", "x", "b", "y", "c", "c", "c", "c"])
    replies = [None if text is None else Reply(text, None, "stop", 1, 1) for text in said]
    monkeypatch.setattr("stillhouse.evaluate.sampled_answers._replies", lambda candidate, requests: replies)
    candidate = Candidate("student", "s", None)  # pyright: ignore[reportArgumentType]
    with open_verifiers([Verifier(kind="exact")]) as verifiers:
        scores, differences = sample_and_score([candidate], PROMPTS, SETTINGS, verifiers, seed=0)
    found = scores["student"]
    assert differences == {}
    assert found["pass_at_1"]["value"] == pytest.approx((2 / 4 + 1 / 4 + 1) / 3)
    assert found["consensus_at_k"]["value"] == pytest.approx(2 / 3)
    assert found["pass_at_1"]["documents"] == 3


def test_two_models_with_the_same_weights_say_the_same(tiny_teacher):
    weights = load_weights(str(tiny_teacher))
    finished = replace(PROMPTS[0], messages=[*PROMPTS[0].messages, {"role": "assistant", "content": "a"}])
    pair = [Candidate("before", "b", weights), Candidate("student", "s", weights)]
    texts = []
    verifier = Verifier(kind="function", function="builtins:bool")
    with open_verifiers([verifier]) as verifiers:
        score = verifiers.score
        verifiers.score = lambda answers: texts.append([a.text for a in answers]) or score(answers)  # type: ignore[method-assign]
        found, differences = sample_and_score(pair, [*PROMPTS[1:], finished], SETTINGS, verifiers, seed=1)
    assert texts[:3] == texts[3:]
    assert len(set(texts[0])) > 1
    assert found["before"] == found["student"]
    assert found["student"]["pass_at_1"]["value"] == 1
    assert [differences["before"][end] for end in ("value", "low", "high")] == [0, 0, 0]


def test_the_difference_from_before_training_is_paired_by_prompt(monkeypatch):
    said = {"student": "aaxabbxbcxxc", "before": "aaxxbxxxxxxc"}  # 4 answers to each of 3 prompts

    def replies(candidate, requests):
        return [Reply(text, None, "stop", 1, 1) for text in said[candidate.key]]

    monkeypatch.setattr("stillhouse.evaluate.sampled_answers._replies", replies)
    pair = [Candidate(key, key, None) for key in said]  # pyright: ignore[reportArgumentType]
    with open_verifiers([Verifier(kind="exact")]) as verifiers:
        _, differences = sample_and_score(pair, PROMPTS, SETTINGS, verifiers, seed=0)
    found = differences["before"]
    # shares 3/4, 3/4, 2/4 against 2/4, 1/4, 1/4: differences 1/4, 2/4, 1/4 with a standard error of 1/12
    assert found["value"] == pytest.approx(1 / 3)
    assert found["high"] - found["value"] == pytest.approx(4.302653 / 12, rel=1e-5)  # t(0.975; 2)


def test_the_table_has_the_columns_only_where_they_were_measured():
    part = {"value": 0.5, "low": 0.25, "high": 0.75, "documents": 4, "confidence": 0.95}
    model = {
        "key": "student",
        "kl": None,
        "agreement": None,
        "perplexity": part,
        "bytes": 1,
        "tokens_per_s": None,
    }
    report = {"models": [model], "held_out": {"documents": 4, "tokens": 9}}
    assert "pass@1 %" not in results_table(report)[1]
    report["models"] = [model | {"pass_at_1": part, "consensus_at_k": part, "samples": 8}]
    _, columns, rows = results_table(report)
    assert dict(zip(columns, rows[0], strict=True))["cons@8 %"] == "50 [25–75]"
    assert dict(zip(columns, rows[0], strict=True))["perplexity"].startswith("0.50")
