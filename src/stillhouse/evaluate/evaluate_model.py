"""Evaluation from Python: one call that compares a student with its teacher on conversations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stillhouse.errors import TokenizerMismatchError
from stillhouse.evaluate.compare import Candidate, evaluate_models
from stillhouse.recipe import Evaluate

if TYPE_CHECKING:
    from stillhouse.corpus.conversations import Conversations
    from stillhouse.distill import Document
    from stillhouse.models import Weights


def evaluate(
    student: str | os.PathLike[str] | Weights,
    data: Conversations | Sequence[Document],
    *,
    teacher: str | os.PathLike[str] | Weights | None = None,
    before: str | os.PathLike[str] | Weights | None = None,
    control: str | os.PathLike[str] | Weights | None = None,
    max_length: int = 1024,
    speed: bool = False,
    confidence: float = Evaluate.confidence,
) -> dict[str, Any]:
    """Measures a student on conversations that it was not trained on, and compares it with other models.

    Example::

        report = st.evaluate(student, held_out, teacher=teacher, before="start")
        report["models"][1]["kl"]         # {'value': 0.21, 'low': 0.18, 'high': 0.24, …}, nats per token
        report["verdict"]["headline"]

    All models read the same tokens, those of the student's tokenizer and template, and are measured at the
    tokens of the answers. Intervals are clustered by conversation.

    Args:
        student: a reference, or a model from `load`.
        data: conversations that end with an answer, as `tokenize` takes them, or its documents.
        teacher: what divergence and agreement are measured from; without it, only likelihood and perplexity.
        before: the student before training.
        control: a student trained without the teacher's probabilities.
        max_length: tokens; longer conversations are cut.
        speed: also measures tokens/s, which takes about half a minute for small models.
        confidence: of the intervals.

    Returns:
        The entries of `report.json` (docs/evaluation.md): ``models`` (one entry for each model in the order
        teacher, before, student, control, with ``kl`` and ``nll`` in nats per token, ``agreement`` from 0 to
        1 and ``perplexity``, each with ``value``, ``low`` and ``high``), ``comparison`` (paired differences,
        student minus other), ``verdict``, ``held_out`` and ``conditions``.

    Raises:
        TokenizerMismatchError: the models have different tokenizers.
        EmptyCorpusError: no conversation has an answer.
        ModelNotFoundError, ModelError: as `load`.
    """
    from stillhouse.distill import Document, tokenize
    from stillhouse.models import model_and_reference, same_tokenizer

    weights, _ = model_and_reference(student)
    if isinstance(data, Sequence) and data and isinstance(data[0], Document):
        documents: Any = data
    else:
        documents = tokenize(data, weights, max_length=max_length)  # pyright: ignore[reportArgumentType]
    candidates = []
    for key, model in (("teacher", teacher), ("before", before), ("student", student), ("control", control)):
        if model is None:
            continue
        own, path = (weights, None) if model is student else model_and_reference(model)
        if not same_tokenizer(own.tokenizer, weights.tokenizer):
            raise TokenizerMismatchError(
                f"{own.reference} and {weights.reference} have different tokenizers, so that their "
                "probabilities of tokens cannot be compared"
            )
        candidates.append(Candidate(key, own.reference, own, path))
    settings = Evaluate(prompts=0, speed=speed, confidence=confidence)
    return evaluate_models(candidates, documents, [], settings)
