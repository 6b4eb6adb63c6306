"""Measures teacher, student before and after training, and control on the same held-out documents.

One call measures all models (:func:`evaluate_models`) and returns the report's sections
with numbers. All models are in memory at once, so that their speeds can be measured in
turn. The caller chooses the models and their labels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from stillhouse.console import console
from stillhouse.errors import EmptyCorpusError
from stillhouse.evaluate.answers import generate_answers
from stillhouse.evaluate.measures import Measures, ReferenceModel, TeacherReference, measure
from stillhouse.evaluate.speed import NEW_TOKENS, ROUNDS, Speeds, measure_speed
from stillhouse.evaluate.verdict import judge_comparison
from stillhouse.recipe import Evaluate
from stillhouse.stats import clipped, exponential, interval, paired_difference

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stillhouse.corpus import Prompt
    from stillhouse.distill import Document
    from stillhouse.models import Message, Weights

WEIGHT_FILES = ("*.safetensors", "*.gguf")
SPEED_TOKENS = 128


@dataclass(frozen=True)
class Candidate:
    """A model to measure.

    Args:
        key: ``teacher`` (the reference of the others), ``before``, ``student``, ``offline`` or ``control``.
        label: its name in tables.
        weights: the model with its tokenizer and template.
        files: its weight file or their directory, for the size; None reports the size in memory.
        shown: adds what only this model sees (a private context) to a conversation.
    """

    key: str
    label: str
    weights: Weights
    files: Path | None = None
    shown: Callable[[list[Message]], list[Message]] = list


def evaluate_models(
    candidates: Sequence[Candidate],
    documents: Sequence[Document],
    prompts: Sequence[Prompt],
    settings: Evaluate,
    *,
    reference: ReferenceModel | None = None,
) -> dict[str, Any]:
    """Measures every candidate and compares the student with the others.

    Args:
        candidates: in the order of the tables; each key once. Without a ``teacher`` (one behind an API)
            divergence and agreement are left out.
        documents: held-out exchanges, in the student's template.
        prompts: held-out prompts; all candidates answer the first ``settings.prompts``.
        settings: confidence, number and length of answers, whether to measure speed.
        reference: what all models are compared with and what the row ``teacher`` reports, at the counted
            tokens of ``documents``; by default the candidate ``teacher``, on the documents themselves.

    Returns:
        The entries ``models``, ``comparison``, ``verdict``, ``held_out``, ``answers`` and ``conditions``
        of the report (see :mod:`.schema`).

    Raises:
        EmptyCorpusError: no document has a token to measure on.
    """
    if not documents:
        raise EmptyCorpusError(
            "there is no held-out document to measure on",
            hint="Hold out more prompts (prompts.held_out), or check why their answers were rejected.",
        )
    measures = _measure_all(candidates, documents, reference)
    speeds: dict[str, Speeds] = {}
    if settings.speed:
        with console.progress("speed", ROUNDS + 1, "rounds") as progress:
            by_key = {candidate.key: candidate.weights.model for candidate in candidates}
            speeds = measure_speed(by_key, _speed_text(documents), on_round=progress.advance)
    models = [
        model_entry(c, measures[c.key], speeds.get(c.key), confidence=settings.confidence) for c in candidates
    ]
    comparison = {
        key: comparison_entry(measures["student"], measures[key], settings.confidence)
        for key in ("control", "before", "offline")
        if key in measures and "student" in measures
    }
    return {
        "models": models,
        "comparison": comparison,
        "verdict": asdict(judge_comparison(comparison, models)),
        "held_out": {"documents": len(documents), "tokens": next(iter(measures.values())).tokens},
        "answers": _answers(candidates, prompts[: settings.prompts], settings.max_tokens),
        "conditions": _conditions(candidates, documents, settings),
    }


def model_entry(
    candidate: Candidate, measures: Measures, speeds: Speeds | None, *, confidence: float
) -> dict[str, Any]:
    """One model's row of the report: size, speed, and each measure with its interval."""
    model = candidate.weights.model
    nll = clipped(interval(measures.nll_D, measures.tokens_D, confidence), 0.0)
    kl = agreement = None
    if measures.kl_D is not None and measures.agree_D is not None:
        kl = clipped(interval(measures.kl_D, measures.tokens_D, confidence), 0.0).to_dict()
        agreement = clipped(interval(measures.agree_D, measures.tokens_D, confidence), 0.0, 1.0).to_dict()
    size, form = weight_files(candidate.files) if candidate.files else (model_bytes(model), "in memory")
    return {
        "key": candidate.key,
        "label": candidate.label,
        "parameters": sum(p.numel() for p in model.parameters()),
        "bytes": size,
        "format": form,
        "kl": kl,
        "agreement": agreement,
        "nll": nll.to_dict(),
        "perplexity": exponential(nll).to_dict(),
        "tokens_per_s": speeds.generate.to_dict() if speeds else None,
        "scored_tokens_per_s": speeds.score.to_dict() if speeds else None,
    }


def comparison_entry(student: Measures, other: Measures, confidence: float) -> dict[str, Any]:
    """Paired differences student − other per token.

    Negative ``kl`` and ``nll`` and positive ``agreement`` favour the student.
    """

    def difference(a_D: np.ndarray | None, b_D: np.ndarray | None) -> dict[str, Any] | None:
        if a_D is None or b_D is None:
            return None
        return paired_difference(a_D, b_D, student.tokens_D, confidence).to_dict()

    # paired by position, so both must have measured the same documents in the same order
    assert student.documents == other.documents
    return {
        "kl": difference(student.kl_D, other.kl_D),
        "agreement": difference(student.agree_D, other.agree_D),
        "nll": difference(student.nll_D, other.nll_D),
    }


def model_bytes(model: PreTrainedModel) -> int:
    """Bytes of a model's parameters in memory; tied weights count once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def weight_files(path: Path) -> tuple[int, str]:
    """Bytes of a model's weight files, and their format: ``safetensors`` or ``GGUF``."""
    files = [path] if path.is_file() else [f for pattern in WEIGHT_FILES for f in sorted(path.glob(pattern))]
    form = "GGUF" if any(f.suffix == ".gguf" for f in files) else "safetensors"
    return sum(f.stat().st_size for f in files), form


def _measure_all(
    candidates: Sequence[Candidate], documents: Sequence[Document], reference: ReferenceModel | None
) -> dict[str, Measures]:
    """Measures the teacher first, because the others are compared with it; the table's order stays."""
    teacher = next((c for c in candidates if c.key == "teacher"), None)
    measures: dict[str, Measures] = {}
    with console.progress("evaluate", len(candidates), "models") as progress:
        if teacher is not None:
            reference = reference or TeacherReference(teacher.weights.model, documents)
            measures[teacher.key] = reference.measures()
            progress.advance()
        for candidate in candidates:
            if candidate is not teacher:
                measures[candidate.key] = measure(candidate.weights.model, documents, teacher=reference)
                progress.advance()
    return measures


def _speed_text(documents: Sequence[Document]) -> torch.Tensor:
    """The first tokens of the held-out text: real text, the same for every model."""
    ids = np.concatenate([document.ids for document in documents])[:SPEED_TOKENS]
    return torch.from_numpy(ids.astype(np.int64))


def _answers(
    candidates: Sequence[Candidate], prompts: Sequence[Prompt], max_tokens: int
) -> list[dict[str, Any]]:
    """Each prompt with every model's reply; the answer of a finished exchange is not shown to the models."""
    questions = [p.question for p in prompts]
    replies = {}
    with console.progress("answers", len(candidates), "models") as progress:
        for candidate in candidates:
            conversations = [candidate.shown(turns) for turns in questions]
            replies[candidate.key] = generate_answers(candidate.weights, conversations, max_tokens=max_tokens)
            progress.advance()
    return [
        {
            "prompt": turns[-1]["content"],
            "messages": turns,
            "replies": {key: texts[i] for key, texts in replies.items()},
        }
        for i, turns in enumerate(questions)
    ]


def _conditions(
    candidates: Sequence[Candidate], documents: Sequence[Document], settings: Evaluate
) -> dict[str, Any]:
    """The conditions of the measurement, for a repetition."""
    model = candidates[0].weights.model
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "threads": torch.get_num_threads(),
        "speed_prompt_tokens": min(SPEED_TOKENS, sum(len(d) for d in documents)),
        "speed_new_tokens": NEW_TOKENS,
        "speed_rounds": ROUNDS,
        "answer_max_tokens": settings.max_tokens,
        "confidence": settings.confidence,
    }
