"""Context distillation: the teacher reads more than the student, and is matched at the same tokens."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from test_documents import exchange, template, tokenizer  # noqa: F401  fixtures
from tiny_training import llama

from stillhouse.distill.data.documents import Document, make_documents
from stillhouse.distill.loss.fused_loss import fused_loss
from stillhouse.distill.loss.lm_head import lm_head_of
from stillhouse.distill.loss.teacher_rows import DenseRows
from stillhouse.distill.targets.context_distillation import PrivateContextSignal, make_teacher_documents
from stillhouse.distill.targets.teacher_signal import cache_targets
from stillhouse.distill.training.loop import train
from stillhouse.errors import TokenizerMismatchError
from stillhouse.models import ChatTemplate
from stillhouse.recipe import Objective, Train

CPU = torch.device("cpu")
CONTEXT = [
    {"role": "system", "content": "Rhyme."},
    {"role": "user", "content": "A cat?"},
    {"role": "assistant", "content": "A hat."},
]
ROWS = [
    exchange(0, "Hi?", "Yes it is."),
    exchange(1, "And now", "No.", "Why?", "Because <|im_end|> of it."),
    exchange(2, "A long question that is cut", "with most of its answer, which nobody will learn"),
]
LENGTH = 90


def shown(messages):
    return [*CONTEXT, *messages]


def both(tokenizer, template, *, loss_on: Any = "assistant", rows=ROWS):  # noqa: F811
    documents = make_documents(rows, tokenizer, template, max_length=LENGTH, loss_on=loss_on)
    read = make_teacher_documents(documents, rows, shown, tokenizer, template, loss_on=loss_on)
    return documents, read


@pytest.mark.parametrize("loss_on", ["assistant", "all"])
def test_the_same_tokens_count_in_the_same_order(tokenizer, template, loss_on):  # noqa: F811
    documents, read = both(tokenizer, template, loss_on=loss_on)
    assert any(len(document) == LENGTH for document in documents)  # one is cut
    before = template.encode(tokenizer, CONTEXT)[0]
    for document, longer in zip(documents, read, strict=True):
        assert longer.id == document.id
        assert longer.labels.tolist() == document.labels.tolist()
        # ChatML puts a conversation after another by putting its tokens after: the shift is theirs.
        assert (longer.predicting - document.predicting == len(before)).all()
        assert longer.ids[: len(before)].tolist() == before


def test_a_template_that_writes_the_answer_differently_is_refused(tokenizer):  # noqa: F811
    odd = ChatTemplate(
        "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
        "{% if messages[0]['role'] == 'system' and message['role'] == 'assistant' %}So: {% endif %}"
        "{{ message['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}",
        {"eos_token": "<|im_end|>"},
    )
    with pytest.raises(TokenizerMismatchError, match=r"row-0: .* differently after the teacher"):
        both(tokenizer, odd)


def direct_logp(model, document: Document) -> torch.Tensor:
    """The whole document alone through the model: log-probabilities at its predicting positions, float64."""
    with torch.no_grad():
        ids = torch.from_numpy(document.ids.astype(np.int64))[None]
        return model(input_ids=ids, use_cache=False).logits[0, document.predicting].double().log_softmax(-1)


@pytest.fixture
def teacher(tokenizer):  # noqa: F811
    return llama(vocab_size=len(tokenizer))


@pytest.mark.parametrize("targets", ["hidden", "online", "topk"])
def test_rows_are_those_of_the_longer_text_at_the_right_shift(
    tmp_path,
    tokenizer,  # noqa: F811
    template,  # noqa: F811
    teacher,
    targets,
):
    documents, read = both(tokenizer, template)
    objective = Objective(targets=targets, top_k=5)
    signal = PrivateContextSignal(
        cache_targets(teacher, read, objective, tmp_path, seed=0, dtype="float32"), documents, read
    )
    assert signal.kind == targets
    requests = [
        (2, documents[2].predicting),
        (0, documents[0].predicting[::-2]),
        (1, documents[1].predicting),
    ]
    rows = signal.rows(requests, CPU)
    shift = len(template.encode(tokenizer, CONTEXT)[0])
    expected = []
    for index, positions in requests:
        with torch.no_grad():
            ids = torch.from_numpy(read[index].ids.astype(np.int64))[None]
            logits_TV = teacher.double()(input_ids=ids, use_cache=False).logits[0]
        teacher.float()
        expected.append(logits_TV[positions + shift].log_softmax(-1))
    expected_NV = torch.cat(expected)
    if isinstance(rows, DenseRows):
        logp_NV = rows.finish_logits(rows.raw_logits(slice(None), rows.vocab_size).float()).log_softmax(-1)
        torch.testing.assert_close(logp_NV.double(), expected_NV, rtol=1e-4, atol=1e-4)
    else:
        assert rows.ids_NK.tolist() == expected_NV.topk(5).indices.tolist()


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl"])
def test_a_model_learns_from_itself_under_a_context(tmp_path, tokenizer, template, teacher, kind):  # noqa: F811
    """Teacher and student are one model: there is nothing to learn but what the context says."""
    documents, read = both(tokenizer, template)
    objective = Objective(kind=kind)
    student = llama(vocab_size=len(tokenizer))
    signal = PrivateContextSignal(
        cache_targets(teacher, read, objective, tmp_path / "t", seed=0, dtype="float32"), documents, read
    )

    def loss(signal) -> float:
        total = 0.0
        for index, document in enumerate(documents):
            with torch.no_grad():
                ids = torch.from_numpy(document.ids.astype(np.int64))[None]
                hidden_ND = student.model(input_ids=ids).last_hidden_state[0, document.predicting]
                rows = signal.rows([(index, document.predicting)], CPU)
                labels_N = torch.from_numpy(document.labels.astype(np.int64))
                total += fused_loss(hidden_ND, lm_head_of(student), labels_N, rows, objective).item()
        return total / sum(document.counted for document in documents)

    same = cache_targets(teacher, documents, objective, tmp_path / "same", seed=0, dtype="float32")
    assert abs(loss(same)) < 1e-6
    before = loss(signal)
    if kind == "forward_kl":
        exact = [
            (p.exp() * (p - q)).sum(-1)
            for p, q in (
                (direct_logp(teacher, longer), direct_logp(student, document))
                for document, longer in zip(documents, read, strict=True)
            )
        ]
        assert before == pytest.approx(torch.cat(exact).mean().item(), rel=1e-4)
    assert before > 1e-3
    settings = Train(epochs=20, learning_rate=3e-3, batch_tokens=300, dtype="float32", schedule="constant")
    train(student, documents, signal, objective=objective, settings=settings, directory=tmp_path, seed=0)
    assert loss(signal) < 0.6 * before


def test_a_row_that_became_no_document_is_passed_over(tokenizer, template):  # noqa: F811
    silent = {"id": "silent", "messages": [{"role": "user", "content": "word " * 40}, ROWS[0]["messages"][1]]}
    documents, read = both(tokenizer, template, rows=[ROWS[0], silent, ROWS[1]])
    assert [d.id for d in documents] == [d.id for d in read] == ["row-0", "row-1"]


def test_measuring_holds_students_against_the_teacher_under_its_context(tokenizer, template, teacher):  # noqa: F811
    from stillhouse.evaluate import TeacherReference, measure

    documents, read = both(tokenizer, template)
    reference = TeacherReference(teacher, read)
    measures = measure(llama(vocab_size=len(tokenizer)), documents, teacher=reference)
    assert measures.kl_D is not None
    for kl, own_nll, document, longer in zip(
        measures.kl_D, reference.measures().nll_D, documents, read, strict=True
    ):
        p, q = direct_logp(teacher, longer), direct_logp(teacher, document)
        assert kl == pytest.approx((p.exp() * (p - q)).sum().item(), rel=1e-4)
        labels = torch.from_numpy(longer.labels.astype(np.int64))
        assert own_nll == pytest.approx(-p.gather(1, labels[:, None]).sum().item(), rel=1e-4)


def test_documents_that_count_differently_are_no_pair(tokenizer, template, teacher):  # noqa: F811
    documents, read = both(tokenizer, template)
    with pytest.raises(AssertionError):
        PrivateContextSignal(None, documents, [replace(read[0], loss=~read[0].loss), *read[1:]])  # pyright: ignore[reportArgumentType]
