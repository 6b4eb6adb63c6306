"""Held-out measures against naive float64 loops over the model's own logits."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    PreTrainedModel,
)

import stillhouse.evaluate.measures as measure_module
from stillhouse.distill import Document, ForwardPass
from stillhouse.errors import EmptyCorpusError, NonFiniteLossError, TokenizerMismatchError
from stillhouse.evaluate import TeacherReference, measure

SMALL = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}


def tiny(config=LlamaConfig, vocab: int = 100, seed: int = 0, **changes) -> PreTrainedModel:
    torch.manual_seed(seed)
    settings = SMALL | {"vocab_size": vocab, "pad_token_id": 0, "initializer_range": 0.4} | changes
    return AutoModelForCausalLM.from_config(config(**settings)).eval()


def documents(count: int = 3, length: int = 40, vocab: int = 100, seed: int = 0) -> list[Document]:
    """Random tokens; the second half of each is the answer, of unequal lengths."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        size = length + 7 * i
        loss = np.zeros(size, dtype=bool)
        loss[size // 2 :] = True
        loss[size // 2 + 3] = False  # a gap inside the answer
        found.append(Document(f"d{i}", rng.integers(0, vocab, size).astype(np.int32), loss))
    return found


def naive(student: PreTrainedModel, teacher: PreTrainedModel | None, document: Document, vocab: int):
    """Position by position in Python floats: NLL, KL, agreements, tokens."""

    def logits(model):
        with torch.no_grad():
            return model(input_ids=torch.from_numpy(document.ids.astype(np.int64))[None]).logits[0].tolist()

    def distribution(row):
        top = max(row[:vocab])
        total = math.fsum(math.exp(x - top) for x in row[:vocab])
        return [x - top - math.log(total) for x in row[:vocab]]

    student_rows = logits(student)
    teacher_rows = None if teacher is None else logits(teacher)
    nll = kl = agree = tokens = 0
    for target in range(1, len(document.ids)):
        if not document.loss[target]:
            continue
        tokens += 1
        q = distribution(student_rows[target - 1])
        nll -= q[int(document.ids[target])]
        if teacher_rows is not None:
            p = distribution(teacher_rows[target - 1])
            kl += math.fsum(math.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
            agree += p.index(max(p)) == q.index(max(q))
    return nll, kl, agree, tokens


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (LlamaConfig, {}),
        (Gemma2Config, {"head_dim": 8, "final_logit_softcapping": 3.0}),
        (GraniteConfig, {"logits_scaling": 4.0}),
        (CohereConfig, {"logit_scale": 0.25}),
    ],
)
def test_sums_are_those_of_naive_loops(config, changes, monkeypatch):
    monkeypatch.setattr(measure_module, "CHUNK", 7)  # so that documents end inside a chunk
    teacher, student = tiny(config, seed=1, **changes), tiny(config, seed=2, **changes)
    held_out = documents()
    found = measure(student, held_out, teacher=TeacherReference(teacher, held_out))
    for i, document in enumerate(held_out):
        nll, kl, agree, tokens = naive(student, teacher, document, 100)
        assert found.nll_D[i] == pytest.approx(nll, rel=1e-5)
        assert found.kl_D is not None
        assert found.kl_D[i] == pytest.approx(kl, rel=1e-5)
        assert found.agree_D is not None
        assert found.agree_D[i] == agree
        assert found.tokens_D[i] == tokens
    assert found.documents == ("d0", "d1", "d2")


@pytest.mark.parametrize(("teacher_vocab", "student_vocab"), [(104, 128), (128, 104)])
def test_vocabularies_padded_to_different_sizes_are_compared_on_what_they_share(teacher_vocab, student_vocab):
    teacher, student = tiny(vocab=teacher_vocab, seed=1), tiny(vocab=student_vocab, seed=2)
    held_out = documents()
    found = measure(student, held_out, teacher=TeacherReference(teacher, held_out))
    expected = [naive(student, teacher, d, 104) for d in held_out]
    assert found.kl_D == pytest.approx([e[1] for e in expected], rel=1e-5)
    assert found.nll_D == pytest.approx([e[0] for e in expected], rel=1e-5)


def test_a_model_is_no_distance_from_itself():
    teacher, held_out = tiny(), documents()
    reference = TeacherReference(teacher, held_out)
    again, by_definition = measure(teacher, held_out, teacher=reference), reference.measures()
    assert by_definition.kl_D == pytest.approx(np.zeros(3))
    assert again.kl_D == pytest.approx(np.zeros(3), abs=1e-4)
    assert again.agree_D == pytest.approx(by_definition.tokens_D)
    assert by_definition.agree_D == pytest.approx(by_definition.tokens_D)
    assert again.nll_D == pytest.approx(by_definition.nll_D)


def test_bfloat16_layers_are_reduced_in_float32():
    # With the same bfloat16 hidden states, the only rounding left is that of the layers: the sums must be
    # those of a float64 head over these hidden states, which a bfloat16 logit (3 digits) would miss by far.
    student, held_out = tiny(seed=2).to(torch.bfloat16), documents()
    found = measure(student, held_out)
    weight = student.get_output_embeddings().weight.detach().double()
    hidden = ForwardPass(student, held_out, "bfloat16").hidden(range(len(held_out)))
    for i, document in enumerate(held_out):
        assert hidden[i].dtype == torch.bfloat16
        logp = (hidden[i].double() @ weight.T).log_softmax(-1).detach().numpy()
        expected = -sum(row[label] for row, label in zip(logp, document.labels, strict=True))
        assert found.nll_D[i] == pytest.approx(expected, rel=2e-6)


def test_without_a_teacher_only_the_likelihood_is_measured():
    student, held_out = tiny(), documents()
    found = measure(student, held_out)
    assert found.kl_D is None
    assert found.agree_D is None
    assert found.nll_D == pytest.approx([naive(student, None, d, 100)[0] for d in held_out], rel=1e-5)


def test_no_logits_of_a_whole_document_exist(monkeypatch):
    rows = []
    original = measure_module._log_probabilities

    def watch(head, hidden, vocab):
        rows.append(len(hidden))
        return original(head, hidden, vocab)

    monkeypatch.setattr(measure_module, "CHUNK", 8)
    monkeypatch.setattr(measure_module, "_log_probabilities", watch)
    held_out = documents(2, length=100)
    measure(tiny(seed=2), held_out, teacher=TeacherReference(tiny(seed=1), held_out))
    assert max(rows) == 8
    assert sum(rows) == 2 * sum(d.counted for d in held_out)


def test_a_document_without_an_answer_counts_nothing():
    student, held_out = tiny(), documents(2)
    silent = Document("silent", held_out[0].ids, np.zeros(len(held_out[0].ids), dtype=bool))
    found = measure(student, [*held_out, silent])
    assert (found.tokens_D[2], found.nll_D[2]) == (0, 0.0)
    assert found.tokens == sum(d.counted for d in held_out)


def test_nothing_to_measure_on_is_an_empty_corpus():
    silent = Document("s", np.arange(5, dtype=np.int32), np.zeros(5, dtype=bool))
    with pytest.raises(EmptyCorpusError, match="held-out"):
        measure(tiny(), [silent])


def test_a_token_outside_the_vocabulary_is_named():
    held_out = documents(1, vocab=100)
    with pytest.raises(TokenizerMismatchError, match=r"d0 .* outside the vocabulary of 90"):
        measure(tiny(vocab=100), held_out, teacher=_narrow(TeacherReference(tiny(vocab=100), held_out), 90))


def _narrow(reference: TeacherReference, vocab: int) -> TeacherReference:
    """As if the teacher's vocabulary were smaller than the text's largest token, 99."""
    reference.head = replace(reference.head, weight_VD=reference.head.weight_VD[:vocab])
    held = reference.documents[0]
    held.ids[-1], held.loss[-1] = 99, True
    return reference


def test_a_model_that_gives_nan_is_refused():
    student, held_out = tiny(), documents(1)
    with torch.no_grad():
        student.get_input_embeddings().weight[int(held_out[0].ids[10])] = float("nan")
    with pytest.raises(NonFiniteLossError, match="d0"):
        measure(student, held_out)
