"""A student of other tokens learns from cached and asked hidden states, killed or not."""

import numpy as np
import pytest
import torch
from tiny_training import llama
from two_tokenizers import chatml_reader, exchanges_of, tags_reader

from stillhouse.distill.data.documents import make_documents
from stillhouse.distill.data.token_alignment import align_documents
from stillhouse.distill.loss.cross_tokenizer import SpanRows, span_loss
from stillhouse.distill.loss.lm_head import lm_head_of
from stillhouse.distill.loss.shared_vocabulary import join_vocabularies
from stillhouse.distill.targets.span_targets import SpanSignal
from stillhouse.distill.targets.teacher_signal import cache_targets, open_targets
from stillhouse.distill.training.loop import train
from stillhouse.distill.training.tracking import MetricsLog
from stillhouse.recipe import Objective, Train

TEACHER, STUDENT = chatml_reader(), tags_reader()
ANSWERS = [
    "the still takes",
    "nothing else is",
    "a large spirit 🙂",
    "thinking otherwise",
    "what matters",
    "café",
]
ROWS = exchanges_of(ANSWERS)
DOCUMENTS = make_documents(ROWS, STUDENT.tokenizer, STUDENT.template, loss_on="assistant", max_length=99)
ALIGNED = align_documents(ROWS, DOCUMENTS, teacher=TEACHER, student=STUDENT)
VOCABULARY = join_vocabularies(TEACHER.tokenizer, STUDENT.tokenizer, (TEACHER.end_id(), STUDENT.end_id()))
SETTINGS = Train(
    epochs=6, batch_tokens=50, micro_tokens=40, learning_rate=3e-3, dtype="float32", checkpoint_every=3
)
CPU = torch.device("cpu")


def teacher():
    return llama(vocab_size=len(TEACHER.token_bytes) + 4)


def student(**changes):
    return llama(vocab_size=len(STUDENT.token_bytes) + 3, attention_dropout=0.1, **changes)


def signal(place, targets="hidden", model=None) -> SpanSignal:
    objective = Objective(targets=targets, align="spans")
    model = model or teacher()
    cache_targets(model, ALIGNED.documents, objective, place, seed=0, dtype="float32")
    asked = open_targets(place, ALIGNED.documents, objective, teacher=model, dtype="float32")
    return SpanSignal(asked, ALIGNED, VOCABULARY)


def run(directory, place, *, objective, settings=SETTINGS):
    model = student()
    result = train(
        model,
        DOCUMENTS,
        signal(place, objective.targets),
        objective=objective,
        settings=settings,
        directory=directory,
        seed=1,
    )
    return model, result


def test_rows_are_the_teachers_at_the_tokens_before_those_that_came(tmp_path):
    """Against the teacher's own logits, token by token, for documents in another order."""
    model = teacher()
    order = [3, 0, 5]
    rows = signal(tmp_path, model=model).rows([(i, DOCUMENTS[i].predicting) for i in order], CPU)
    logits_MV = rows.teacher.head.logits(rows.teacher.hidden_ND)
    labels = np.concatenate([DOCUMENTS[i].labels for i in order])
    at = 0
    for i in order:
        read = ALIGNED.documents[i]
        own_TV = model(input_ids=torch.from_numpy(read.ids.astype(np.int64))[None]).logits[0]
        for t in range(1, len(read)):
            if read.loss[t]:
                torch.testing.assert_close(logits_MV[at], own_TV[t - 1], rtol=1e-4, atol=1e-5)
                assert rows.labels_M[at] == read.ids[t]
                at += 1
    assert at == len(logits_MV)
    for t, many, s, few in rows.spans_S4.tolist():
        ours = b"".join(TEACHER.token_bytes[n] for n in rows.labels_M[t : t + many].tolist())
        theirs = b"".join(STUDENT.token_bytes[n] for n in labels[s : s + few].tolist())
        assert ours == theirs or (ours, theirs) == (b"<|im_end|>", b"</s>")


@pytest.mark.parametrize("objective", [Objective(align="spans"), Objective(kind="uld", cross_entropy=0.3)])
def test_cached_and_asked_hidden_states_are_the_same(tmp_path, objective):
    model = student().eval()
    parts = [(i, document.predicting) for i, document in enumerate(DOCUMENTS)]
    hidden = torch.randn(sum(d.counted for d in DOCUMENTS), 32, generator=torch.Generator().manual_seed(0))
    labels = torch.from_numpy(np.concatenate([d.labels for d in DOCUMENTS]).astype(np.int64))
    losses = []
    for targets in ("hidden", "online"):
        rows = signal(tmp_path / targets, targets).rows(parts, CPU)
        assert isinstance(rows, SpanRows)
        losses.append(span_loss(hidden, lm_head_of(model), labels, rows, objective).item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd", "uld"])
def test_the_loss_falls(tmp_path, kind):
    settings = Train(**vars(SETTINGS) | {"epochs": 25})
    _, result = run(
        tmp_path, tmp_path / "targets", objective=Objective(kind=kind, align="spans"), settings=settings
    )
    assert np.mean(result.losses[-3:]) < 0.8 * np.mean(result.losses[:3])


@pytest.mark.parametrize(
    "objective",
    [Objective(align="spans"), Objective(kind="uld", align="spans", cross_entropy=0.4)],
    ids=lambda o: o.kind,
)
def test_a_killed_run_ends_with_the_same_bits(tmp_path, objective, monkeypatch):
    expected, alone = run(tmp_path / "alone", tmp_path / "targets", objective=objective)

    class Killed(Exception):
        pass

    log = MetricsLog.log

    def log_and_die(self, step, values):
        log(self, step, values)
        if step == 5:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(MetricsLog, "log", log_and_die)
        with pytest.raises(Killed):
            run(tmp_path / "killed", tmp_path / "targets", objective=objective)
    model, result = run(tmp_path / "killed", tmp_path / "targets", objective=objective)
    assert result.losses == alone.losses
    assert result.steps > 5
    for ours, theirs in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(ours, theirs)
