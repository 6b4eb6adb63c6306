"""Objectives for a student with another tokenizer: the teacher's text, sorted probabilities, or spans.

    still collect recipes/other-tokenizer.yaml --out runs/other-tokenizer
    python benchmarks/other_tokenizers.py runs/other-tokenizer --seeds 3

Every arm trains the same scratch student (of the recipe in the run's directory) on the same answers in the
same steps; only the objective and the seed (weights and order) differ. Measured on the held-out answers:

- **bits/byte**: the student's negative log-likelihood of the teacher's answers, with their end token, divided
  by their bytes. It does not depend on either tokenizer.
- **span KL**: forward KL from teacher to student over shared tokens, per span, as `align: spans` defines it.

Arms that no recipe offers, to compare treatments of tokens that are not shared:

- *rest*: tokens that only one side has are one outcome, the rest.
- *encoded*: they map to the token with which the other tokenizer begins them, not to the longest shared token
  that they begin with.
- *inside*: tokens inside a span are learned from the text, by cross-entropy, and not by the chain rule.
- *gold*: as in TRL's GOLD trainer: the whole first distribution times the chain of the others,
  generalised JSD (beta 0.5) term by term over shared tokens, sorted L1 for the others, weighted by the
  share of the teacher's tokens that is shared.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from stillhouse.corpus import Corpus
from stillhouse.distill.data.documents import Document, make_documents
from stillhouse.distill.data.token_alignment import ChatTokenizer, align_documents
from stillhouse.distill.forward.forward_pass import ForwardPass
from stillhouse.distill.loss import cross_tokenizer
from stillhouse.distill.loss.cross_tokenizer import SpanPredictions, ranked_distance
from stillhouse.distill.loss.logit_losses import loss_and_gradient
from stillhouse.distill.loss.shared_vocabulary import SharedVocabulary, join_vocabularies
from stillhouse.distill.students.build import build_student
from stillhouse.distill.targets.span_targets import SpanSignal
from stillhouse.distill.targets.teacher_signal import cache_targets
from stillhouse.distill.training.loop import train
from stillhouse.divergences import Distribution
from stillhouse.models import Weights, load_weights
from stillhouse.recipe import Objective
from stillhouse.recipe.load import load_recipe

SPANS = Objective(align="spans")
ARMS: dict[str, tuple[Objective, str]] = {
    "text (cross-entropy)": (Objective(kind="cross_entropy"), ""),
    "ULD, tokens, with text 0.4": (Objective(kind="uld", cross_entropy=0.4), ""),
    "ULD, spans, with text 0.4": (Objective(kind="uld", align="spans", cross_entropy=0.4), ""),
    "spans, forward KL": (SPANS, ""),
    "spans, forward KL, with text 0.5": (replace(SPANS, cross_entropy=0.5), ""),
    "spans, JSD 0.5": (replace(SPANS, kind="jsd"), ""),
    "spans, forward KL, rest": (SPANS, "rest"),
    "spans, forward KL, encoded": (SPANS, "encoded"),
    "spans, forward KL, inside": (SPANS, "inside"),
    "spans, gold, with text 0.5": (replace(SPANS, cross_entropy=0.5), "gold"),
}


@dataclass(frozen=True)
class Split:
    """Answers tokenised by both sides, with the teacher's hidden states."""

    documents: list[Document]
    answer_bytes: int
    signal: SpanSignal
    by_tokens: SpanSignal
    facts: dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], help="overrides, e.g. train.epochs=18")
    parser.add_argument("--arms", nargs="*", default=list(ARMS), help="parts of names")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    recipe = load_recipe(options.run / "recipe.yaml", options.set)
    teacher = load_weights(recipe.teacher.model)
    corpus = Corpus(options.run / "corpus/kept")
    texts = [m["content"] for row in corpus.rows("train") for m in row["messages"]]

    def student(seed: int) -> Any:
        return build_student(recipe.student, teacher=teacher, calibration=[], seed=seed, texts=texts)

    first = student(0)
    tokenizer = ChatTokenizer(first.tokenizer, first.template)
    arms = {name: ARMS[name] for name in ARMS if any(part in name for part in options.arms)}
    results: dict[str, list[dict[str, float]]] = {name: [] for name in arms}
    with tempfile.TemporaryDirectory() as cache:
        learned, held_out = (
            read_split(corpus, split, teacher, tokenizer, Path(cache) / split)
            for split in ("train", "held_out")
        )
        print(f"{len(learned.documents)} answers, {learned.facts}; {first.facts['parameters']:,} parameters")
        for seed in range(options.seeds):
            for name, (objective, variant) in arms.items():
                model = student(seed).model
                started = time.process_time()
                signal = learned.signal if objective.align == "spans" else learned.by_tokens
                signal = None if objective.kind == "cross_entropy" else signal
                with (
                    tempfile.TemporaryDirectory() as directory,
                    patched_loss(variant, learned.signal, teacher, tokenizer),
                ):
                    result = train(
                        model,
                        learned.documents,
                        signal,
                        objective=objective,
                        settings=recipe.train,
                        directory=Path(directory),
                        seed=seed,
                    )
                measured = measure(model, held_out) | {
                    "seconds": time.process_time() - started,
                    "tokens": result.tokens,
                }
                results[name].append(measured)
                print(seed, name, {key: round(value, 3) for key, value in measured.items()}, flush=True)
    show(results)
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


def read_split(corpus: Corpus, split: str, teacher: Weights, student: ChatTokenizer, cache: Path) -> Split:
    rows = list(corpus.rows(split))
    documents = make_documents(
        rows, student.tokenizer, student.template, loss_on="assistant", max_length=1024
    )
    side = ChatTokenizer(teacher.tokenizer, teacher.template)
    vocabulary = join_vocabularies(teacher.tokenizer, student.tokenizer, (side.end_id(), student.end_id()))
    facts, signals = {}, {}
    for by in ("tokens", "spans"):
        aligned = align_documents(rows, documents, teacher=side, student=student, by=by)
        cached = cache_targets(teacher.model, aligned.documents, SPANS, cache / by, seed=0)
        facts, signals[by] = aligned.facts, SpanSignal(cached, aligned, vocabulary)
    answer_bytes = sum(len(student.token_bytes[n] or b"") for document in documents for n in document.labels)
    return Split(documents, answer_bytes, signals["spans"], signals["tokens"], facts)


@torch.no_grad()
def measure(model: Any, held_out: Split) -> dict[str, float]:
    """Bits per byte of the answers, and forward KL per span."""
    runner = ForwardPass(model, held_out.documents, "float32")
    hidden = runner.hidden(range(len(held_out.documents)))
    nll = kl = spans = 0.0
    for index, (document, hidden_ND) in enumerate(zip(held_out.documents, hidden, strict=True)):
        labels = torch.from_numpy(document.labels.astype(np.int64))
        rows = held_out.signal.rows([(index, document.predicting)], hidden_ND.device)
        text = Objective(kind="cross_entropy")
        nll += cross_tokenizer.span_loss(hidden_ND, runner.head, labels, rows, text).item()
        kl += cross_tokenizer.span_loss(hidden_ND, runner.head, labels, rows, SPANS).item()
        spans += len(rows.spans_S4)
    return {"bits_per_byte": nll / math.log(2) / held_out.answer_bytes, "span_kl": kl / spans}


@contextlib.contextmanager
def patched_loss(
    variant: str, signal: SpanSignal, teacher: Weights, student: ChatTokenizer
) -> Iterator[None]:
    """Replaces the treatment of tokens that are not shared, inside the block."""
    vocabulary, divergence = signal._vocabulary, cross_tokenizer.span_divergence
    if variant in ("rest", "encoded"):
        side = ChatTokenizer(teacher.tokenizer, teacher.template)
        signal._vocabulary = other_mapping(variant, vocabulary, side, student)
    if variant == "inside":
        cross_tokenizer.span_divergence = inside
    if variant == "gold":
        cross_tokenizer.span_divergence = gold(ChatTokenizer(teacher.tokenizer, teacher.template), student)
    try:
        yield
    finally:
        signal._vocabulary, cross_tokenizer.span_divergence = vocabulary, divergence


def other_mapping(
    variant: str, vocabulary: SharedVocabulary, teacher: ChatTokenizer, student: ChatTokenizer
) -> SharedVocabulary:
    both = {b for b in teacher.token_bytes if b} & {b for b in student.token_bytes if b}
    shared = {b: int(n) for b, n in zip(teacher.token_bytes, vocabulary.teacher_V, strict=True) if b in both}

    def map_token(b: bytes | None, other: ChatTokenizer) -> int:
        if variant == "rest":
            return shared.get(b, vocabulary.size) if b else vocabulary.size + 1
        while b and b not in both:
            ids = other.tokenizer.backend_tokenizer.encode(b.decode(errors="ignore")).ids
            first = (other.token_bytes[ids[0]] if ids else None) or b""
            prefix = first if len(first) < len(b) and b.startswith(first) else b[:-1]
            b, other = prefix, (student if other is teacher else teacher)
        return shared.get(b or b"", vocabulary.size)

    teacher_V = torch.tensor([map_token(b, student) for b in teacher.token_bytes])
    student_V = torch.tensor([map_token(b, teacher) for b in student.token_bytes])
    return SharedVocabulary(teacher_V, student_V, vocabulary.size + (variant == "rest"))


def inside(q: SpanPredictions, p: SpanPredictions, multi_token_C: Tensor, objective: Objective) -> Tensor:
    """The divergence at the start of each span, and the text's cross-entropy inside it."""
    student = Distribution.from_logp(q.first_token_logp(p))
    teacher = Distribution.from_logp(p.first_token_logp(q))
    return loss_and_gradient(student, teacher, objective)[0] - q.rest_C


def gold(teacher: ChatTokenizer, student: ChatTokenizer) -> Callable[..., Tensor]:
    """The hybrid loss of TRL's GOLD trainer: matched tokens term by term, and the others sorted."""
    student_id = {b: n for n, b in enumerate(student.token_bytes) if b}
    pairs = [(n, student_id[b]) for n, b in enumerate(teacher.token_bytes) if b in student_id]
    teacher_ids, student_ids = torch.tensor(pairs).T
    weight = len(pairs) / len(teacher.token_bytes)

    def loss(q: SpanPredictions, p: SpanPredictions, multi_token_C: Tensor, objective: Objective) -> Tensor:
        q_CV, p_CV = ((side.logp_CV + side.rest_C[:, None]).exp() for side in (q, p))
        matched = [
            Distribution.from_logp(p_CK.clamp_min(1e-8).log().log_softmax(-1))
            for p_CK in (q_CV[:, student_ids], p_CV[:, teacher_ids])
        ]
        jsd_C, _ = loss_and_gradient(matched[0], matched[1], Objective(kind="jsd", beta=0.5))
        others = [p_CV.index_fill(1, ids, 0.0) for p_CV, ids in ((q_CV, student_ids), (p_CV, teacher_ids))]
        return weight * jsd_C + (1 - weight) * ranked_distance(others[0], others[1])

    return loss


def show(results: dict[str, list[dict[str, float]]]) -> None:
    print("| arm | bits/byte | span KL | process s |\n|---|---|---|---|")
    for name, runs in results.items():
        cells = []
        for key in ("bits_per_byte", "span_kl", "seconds"):
            values = [run[key] for run in runs]
            spread = f" ± {np.std(values, ddof=1):.3f}" if len(values) > 1 and key != "seconds" else ""
            cells.append(f"{np.mean(values):.3f}{spread}" if key != "seconds" else f"{np.mean(values):.0f}")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
