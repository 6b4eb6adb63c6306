"""Divergence, top-1 agreement and likelihood on held-out documents, as sums for each document.

At every position that predicts a token of the answer, three quantities are measured: the
forward divergence KL(teacher ‖ student) in nats, whether the most likely token is the
teacher's, and the negative log-likelihood of the text. There is one sum for each document,
because documents, not tokens, are the sampled units (see :mod:`stillhouse.stats.intervals`).

Logits are computed for a few tokens at a time, so that no [tokens, vocabulary] tensor of a
document exists. Logits and softmax are float32 and sums are float64, whatever the type of the
layers. Nothing here generates text: a low divergence on the teacher's text does not show how
good the student's own text is.

Shapes: D documents, T tokens of a document, N counted tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol

import numpy as np
import torch
from torch import Tensor

from stillhouse.errors import EmptyCorpusError, NonFiniteLossError, TokenizerMismatchError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stillhouse.distill import Document, LMHead

CHUNK = 128
"""Tokens whose logits are in memory at once: 128 × 151,936 × 4 bytes = 78 MB for each model."""


@dataclass(frozen=True)
class Measures:
    """Sums for each of D documents, in the order of the documents."""

    documents: tuple[str, ...]
    tokens_D: np.ndarray
    """Counted tokens, int64."""
    nll_D: np.ndarray
    """Negative log-likelihood of the text, in nats."""
    kl_D: np.ndarray | None
    """KL(teacher ‖ model) in nats; None if the teacher's weights are not available."""
    agree_D: np.ndarray | None
    """Number of positions whose most likely token is the teacher's; None as for ``kl_D``."""

    @property
    def tokens(self) -> int:
        """Counted tokens of all documents."""
        return int(self.tokens_D.sum())


class ReferenceModel(Protocol):
    """Interface of what models are compared with on a list of documents."""

    documents: Sequence[Document]

    @property
    def vocab_size(self) -> int:
        """Number of token ids with a logit, padding included."""
        ...

    def logp(self, index: int, positions: slice, vocab: int) -> Tensor:
        """Log-probabilities of the first ``vocab`` ids at counted tokens of a document, float32 [N, vocab].

        Args:
            index: the document's index.
            positions: the slice of its counted tokens.
        """
        ...

    def measures(self) -> Measures:
        """Measures of the reference itself."""
        ...


class TeacherReference:
    """A teacher's hidden states at the counted positions, computed once and compared with every student.

    They take D·(mean counted tokens)·(hidden size) numbers of the model's type on the CPU: 30 MB for
    50 documents of 256 counted tokens and a hidden size of 576 in float32. Of the model itself only
    the head is kept, so its layers can be freed.
    """

    def __init__(self, model: PreTrainedModel, documents: Sequence[Document]) -> None:
        self.documents: Sequence[Document] = list(documents)
        self.head = _wide_head(model, self.documents)
        self.hidden = [hidden_ND.cpu() for hidden_ND in _counted_hidden(model, self.documents)]

    @property
    def vocab_size(self) -> int:
        return self.head.vocab_size

    def logp(self, index: int, positions: slice, vocab: int) -> Tensor:
        return _log_probabilities(self.head, self.hidden[index][positions], vocab)

    def measures(self) -> Measures:
        """The teacher against itself: divergence 0, full agreement, and its likelihood of the text."""
        return own_measures(self)


def own_measures(reference: ReferenceModel) -> Measures:
    """A reference against itself: divergence 0, full agreement, and its likelihood of the text."""
    # 0 and full agreement by definition; computed values would differ from them by rounding
    own = _measure(reference.documents, reference.logp, reference.vocab_size, None)
    return replace(own, kl_D=np.zeros(len(own.documents)), agree_D=own.tokens_D.astype(np.float64))


def measure(
    model: PreTrainedModel, documents: Sequence[Document], *, teacher: ReferenceModel | None = None
) -> Measures:
    """Measures ``model`` on ``documents``.

    If the padded vocabularies of model and teacher differ in size, both distributions are
    cut to the shared ids and normalised again.

    Args:
        documents: at least one; those of ``teacher``, in the same order.
        teacher: what the model is compared with; None (a teacher behind an API) measures the likelihood only.

    Raises:
        EmptyCorpusError: no document has a counted token.
        TokenizerMismatchError: a token of the text is outside the vocabulary.
        NonFiniteLossError: the model returns NaN or infinity.
    """
    assert teacher is None or [d.id for d in documents] == [d.id for d in teacher.documents]
    head, hidden = _wide_head(model, documents), _counted_hidden(model, documents)

    def logp(index: int, positions: slice, vocab: int) -> Tensor:
        return _log_probabilities(head, hidden[index][positions], vocab)

    return _measure(documents, logp, head.vocab_size, teacher)


def _wide_head(model: PreTrainedModel, documents: Sequence[Document]) -> LMHead:
    """The model's head in float32 (shared where it is that already), checked to be the whole of it."""
    if not any(document.counted for document in documents):
        raise EmptyCorpusError(
            "no held-out document has a token to measure on",
            hint="Hold out more prompts (prompts.held_out), or check why their answers were rejected.",
        )
    from stillhouse.distill import lm_head_of

    head = lm_head_of(model)
    # a bfloat16 logit has about three digits, too few for the divergence of similar models
    bias_V = None if head.bias_V is None else head.bias_V.detach().float()
    return replace(head, weight_VD=head.weight_VD.detach().float(), bias_V=bias_V)


def _counted_hidden(model: PreTrainedModel, documents: Sequence[Document]) -> list[Tensor]:
    """The last hidden states, [N, D] for each document, in the type of the model's own weights."""
    from stillhouse.distill import ForwardPass

    dtype = "bfloat16" if model.dtype == torch.bfloat16 else "float32"
    return ForwardPass(model, documents, dtype).hidden(range(len(documents)))


@torch.no_grad()
def _measure(
    documents: Sequence[Document],
    logp: Callable[[int, slice, int], Tensor],
    vocab_size: int,
    teacher: ReferenceModel | None,
) -> Measures:
    """Sums over the chunks of each document; ``logp`` as :meth:`ReferenceModel.logp`."""
    # models of one family pad their vocabularies to different multiples
    vocab = vocab_size if teacher is None else min(vocab_size, teacher.vocab_size)
    sums = []
    for index, document in enumerate(documents):
        labels_N = torch.from_numpy(document.labels.astype(np.int64))
        if len(labels_N) and int(labels_N.max()) >= vocab:
            raise TokenizerMismatchError(
                f"document {document.id} has token {int(labels_N.max())}, outside the vocabulary of {vocab}"
            )
        document_sums = np.zeros(3)
        for start in range(0, len(labels_N), CHUNK):
            chunk = slice(start, start + CHUNK)
            logp_NV = logp(index, chunk, vocab)
            teacher_logp_NV = None if teacher is None else teacher.logp(index, chunk, vocab)
            document_sums += _chunk_sums(logp_NV, teacher_logp_NV, labels_N[chunk].to(logp_NV.device))
        if not np.isfinite(document_sums).all():
            raise NonFiniteLossError(f"the model returns NaN or infinity on held-out document {document.id}")
        sums.append(document_sums)
    nll_D, kl_D, agree_D = np.array(sums).T
    return Measures(
        documents=tuple(document.id for document in documents),
        tokens_D=np.array([document.counted for document in documents], dtype=np.int64),
        nll_D=nll_D,
        kl_D=kl_D if teacher is not None else None,
        agree_D=agree_D if teacher is not None else None,
    )


def _log_probabilities(head: LMHead, hidden_ND: Tensor, vocab: int) -> Tensor:
    """Log-softmax over the first ``vocab`` ids, float32 [N, vocab]."""
    return head.logits(hidden_ND.to(head.weight_VD.device, torch.float32), vocab).log_softmax(-1)


def _chunk_sums(logp_NV: Tensor, teacher_logp_NV: Tensor | None, labels_N: Tensor) -> np.ndarray:
    """Negative log-likelihood, divergence and agreements, summed over one chunk in float64."""
    nll = -logp_NV.gather(-1, labels_N[:, None]).double().sum()
    if teacher_logp_NV is None:
        return np.array([nll.item(), 0.0, 0.0])
    teacher_logp_NV = teacher_logp_NV.to(logp_NV.device)
    # Not `forward_kl` of stillhouse/divergences.py, which also computes the gradient, another [N, V].
    kl_N = (teacher_logp_NV.exp() * (teacher_logp_NV - logp_NV)).sum(-1)
    agree = (teacher_logp_NV.argmax(-1) == logp_NV.argmax(-1)).sum()
    return np.array([nll.item(), kl_N.double().sum().item(), float(agree.item())])
