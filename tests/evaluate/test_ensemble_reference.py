"""Students compared with several teachers (each document's own, or the mean of two), checked in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_ensemble import DOCUMENTS, teachers
from tiny_training import VOCABULARY, llama

from stillhouse.evaluate import EnsembleReference, TeacherReference, measure


def logp(model, document) -> torch.Tensor:
    ids = torch.from_numpy(document.ids.astype(np.int64))[None]
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, document.predicting]
    return logits[:, :VOCABULARY].double().log_softmax(-1)


def test_kl_agreement_and_likelihood():
    a, b = teachers()
    student = llama(tie_word_embeddings=False)
    mixed, own = [0, 2, 3], [1, 4]
    reference = EnsembleReference(
        DOCUMENTS,
        [
            (TeacherReference(a, [DOCUMENTS[i] for i in mixed]), mixed, 0.25),
            (TeacherReference(b, [DOCUMENTS[i] for i in mixed]), mixed, 0.75),
            (TeacherReference(b, [DOCUMENTS[i] for i in own]), own, 1.0),
        ],
    )
    measures, own_measures = measure(student, DOCUMENTS, teacher=reference), reference.measures()
    assert measures.kl_D is not None
    assert measures.agree_D is not None
    for index, document in enumerate(DOCUMENTS):
        p = logp(b, document).exp()
        if index in mixed:
            p = 0.25 * logp(a, document).exp() + 0.75 * p
        q = logp(student, document)
        assert measures.kl_D[index] == pytest.approx((p * (p.log() - q)).sum().item(), rel=1e-4)
        assert measures.agree_D[index] == (p.argmax(-1) == q.argmax(-1)).sum().item()
        labels = torch.from_numpy(document.labels.astype(np.int64))
        own_nll = -p.log().gather(1, labels[:, None]).sum().item()
        assert own_measures.nll_D[index] == pytest.approx(own_nll, rel=1e-4)
    assert own_measures.kl_D is not None
    assert not own_measures.kl_D.any()
