"""Evaluation of several models, with answers, on a tiny teacher with a real tokenizer."""

from __future__ import annotations

import copy
import json
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch

from stillhouse.console import plain_table
from stillhouse.corpus import Prompt
from stillhouse.distill import make_documents
from stillhouse.errors import EmptyCorpusError
from stillhouse.evaluate import Candidate, evaluate_models, results_table
from stillhouse.evaluate.answers import generate_answers
from stillhouse.evaluate.compare import model_bytes, model_entry, weight_files
from stillhouse.evaluate.measures import Measures
from stillhouse.models import load_weights
from stillhouse.recipe import Evaluate
from stillhouse.stats import interval, paired_difference


@pytest.fixture(scope="module")
def teacher(tiny_teacher):
    return load_weights(str(tiny_teacher))


def disturbed(weights, amount: float, seed: int):
    """The same model with noise on its layers: the more noise, the further from the teacher."""
    changed = copy.deepcopy(weights)
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in changed.model.get_decoder().layers.parameters():
            parameter += amount * torch.randn_like(parameter)
    return changed


@pytest.fixture(scope="module")
def prompts():
    return [
        Prompt(
            id=str(i),
            messages=[
                {"role": "user", "content": f"the spirit keeps what {i}?"},
                {"role": "assistant", "content": "a small model learns from it " * (1 + i % 4)},
            ],
            source="test",
        )
        for i in range(12)
    ]


@pytest.fixture(scope="module")
def documents(teacher, prompts):
    rows = [{"id": p.id, "messages": p.messages} for p in prompts]
    return make_documents(rows, teacher.tokenizer, teacher.template, loss_on="assistant", max_length=200)


@pytest.fixture(scope="module")
def report(teacher, documents, prompts, tiny_teacher):
    candidates = [
        Candidate("before", "before", disturbed(teacher, 0.5, 1)),
        Candidate("teacher", "teacher", teacher, files=tiny_teacher),
        Candidate("student", "student", disturbed(teacher, 0.02, 2)),
        Candidate("control", "control", disturbed(teacher, 0.2, 3)),
    ]
    return evaluate_models(candidates, documents, prompts, Evaluate(prompts=2, max_tokens=6))


def test_models_come_in_the_order_given_and_the_teacher_is_at_no_distance(report):
    assert [m["key"] for m in report["models"]] == ["before", "teacher", "student", "control"]
    before, teacher, student, control = report["models"]
    assert (teacher["kl"]["value"], teacher["agreement"]["value"]) == (0.0, 1.0)
    assert student["kl"]["value"] < control["kl"]["value"] < before["kl"]["value"]
    assert student["agreement"]["value"] > control["agreement"]["value"]


def test_the_verdict_follows_from_the_paired_difference(report):
    difference = report["comparison"]["control"]["kl"]
    models = {m["key"]: m for m in report["models"]}
    assert difference["value"] == pytest.approx(
        models["student"]["kl"]["value"] - models["control"]["kl"]["value"]
    )
    assert difference["high"] < 0
    assert report["verdict"]["outcome"] == "better"
    assert f"{-difference['value']:.3f} nats per token lower" in report["verdict"]["sentence"]


def test_the_result_is_plain_json_and_prints_at_80_columns(report):
    again = json.loads(json.dumps(report))
    assert again["models"] == report["models"]
    printed = plain_table(*results_table(report))
    assert max(map(len, printed.splitlines())) <= 80
    assert len(printed.splitlines()) == 3 + 4


def test_every_model_answers_the_asked_prompts_without_the_given_answer(report):
    assert len(report["answers"]) == 2
    first = report["answers"][0]
    assert first["prompt"] == "the spirit keeps what 0?"
    assert [m["role"] for m in first["messages"]] == ["user"]
    assert set(first["replies"]) == {"teacher", "before", "student", "control"}


def test_speed_and_size_are_of_the_model_and_its_files(report, teacher, tiny_teacher):
    models = {m["key"]: m for m in report["models"]}
    assert models["teacher"]["bytes"] == (tiny_teacher / "model.safetensors").stat().st_size
    assert models["teacher"]["format"] == "safetensors"
    assert models["student"]["bytes"] == model_bytes(teacher.model)
    assert models["student"]["parameters"] == teacher.model.num_parameters()
    for model in models.values():
        speed = model["tokens_per_s"]
        assert 0 < speed["low"] <= speed["median"] <= speed["high"]


def test_without_a_teacher_and_speed_only_the_likelihood_is_there(teacher, documents):
    found = evaluate_models(
        [Candidate("student", "mine", teacher)], documents, [], Evaluate(prompts=0, speed=False)
    )
    model = found["models"][0]
    assert (model["kl"], model["agreement"], model["tokens_per_s"]) == (None, None, None)
    assert found["verdict"]["outcome"] == "unmeasured"
    assert "negative log-likelihood" in found["verdict"]["sentence"]
    assert np.log(model["perplexity"]["value"]) == pytest.approx(model["nll"]["value"])
    assert found["answers"] == []


def test_no_held_out_document_is_an_error_that_says_what_to_do(teacher):
    with pytest.raises(EmptyCorpusError) as caught:
        evaluate_models([Candidate("student", "mine", teacher)], [], [], Evaluate())
    assert "prompts.held_out" in str(caught.value.hint)


def test_answers_in_a_batch_are_those_given_alone(teacher):
    # Left padding must not leak into the text: questions of different lengths, one at a time and together.
    asked = [[{"role": "user", "content": "a still " * n}] for n in (1, 5, 11)]
    alone = [generate_answers(teacher, [turns], max_tokens=8)[0] for turns in asked]
    assert generate_answers(teacher, asked, max_tokens=8) == alone


def test_answers_are_the_likeliest_tokens_of_the_models_own_logits(teacher):
    turns = [{"role": "user", "content": "what matters?"}]
    model = copy.deepcopy(teacher)
    model.model.generation_config.repetition_penalty = 3.0  # a model's own setting, which is ignored
    model.model.generation_config.do_sample = True
    ids = model.template.encode_prompt(model.tokenizer, turns)
    wrote: list[int] = []
    with torch.no_grad():
        for _ in range(10):
            token = int(model.model(torch.tensor([ids + wrote])).logits[0, -1].argmax())
            if token == model.tokenizer.eos_token_id:
                break
            wrote.append(token)
    expected = model.tokenizer.decode(wrote, skip_special_tokens=True).strip()
    assert generate_answers(model, [turns], max_tokens=10)[0].removesuffix(" …") == expected


def test_weight_files_of_a_gguf_are_that_file(tmp_path):
    (tmp_path / "m.gguf").write_bytes(b"x" * 1234)
    assert weight_files(tmp_path / "m.gguf") == (1234, "GGUF")
    assert weight_files(tmp_path) == (1234, "GGUF")


def test_intervals_of_the_report_are_those_of_its_sums(teacher, documents):
    # The wiring: numerator, denominator and order of the difference, by hand for one pair of models.
    from stillhouse.evaluate import TeacherReference, measure

    a, b = disturbed(teacher, 0.02, 2), disturbed(teacher, 0.2, 3)
    reference = TeacherReference(teacher.model, documents)
    left, right = (measure(w.model, documents, teacher=reference) for w in (a, b))
    found = evaluate_models(
        [Candidate("teacher", "t", teacher), Candidate("student", "s", a), Candidate("control", "c", b)],
        documents,
        [],
        Evaluate(speed=False, confidence=0.9),
    )
    assert left.kl_D is not None
    assert right.kl_D is not None
    assert found["models"][1]["kl"] == interval(left.kl_D, left.tokens_D, 0.9).to_dict()
    expected = paired_difference(left.kl_D, right.kl_D, left.tokens_D, 0.9).to_dict()
    assert found["comparison"]["control"]["kl"] == expected


def test_no_perplexity_below_one_is_in_an_interval():
    sums_D = np.array([0.01, 0.02, 4.0])  # far apart: 1.34 ± 5.7 nats per token
    measures = Measures(("a", "b", "c"), np.array([1, 1, 1]), sums_D, None, None)
    weights = SimpleNamespace(model=torch.nn.Linear(1, 1))
    entry = model_entry(Candidate("student", "s", cast(Any, weights)), measures, None, confidence=0.95)
    assert (entry["nll"]["low"], entry["perplexity"]["low"]) == (0.0, 1.0)
