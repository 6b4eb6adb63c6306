"""What the teacher thought at every token: asked once and kept, or asked again for each batch.

A loss does not know where its targets come from: it gets rows (:mod:`.teacher_rows`) from
a :class:`TeacherSignal`. Cached targets are tied to the documents, the teacher and what of
the objective they depend on, and are refused for any other.

Only positions that predict a counted token are kept (``Document.predicting``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch

from stillhouse.console import console
from stillhouse.distill.data.documents import Document, documents_hash
from stillhouse.distill.forward.forward_pass import ForwardPass, model_digest
from stillhouse.distill.loss.divergences import require_supported
from stillhouse.distill.loss.teacher_rows import DenseRows, TeacherRows
from stillhouse.distill.targets.formats import (
    HiddenFormat,
    SampledFormat,
    TargetFormat,
    TopKFormat,
    load_head,
    save_head,
)
from stillhouse.distill.targets.store import TargetStore
from stillhouse.recipe import Objective

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stillhouse.distill.loss.cross_tokenizer import SpanRows

Dtype = Literal["auto", "bfloat16", "float32"]
HEAD_FILE = "head.safetensors"
Positions = tuple[int, np.ndarray]
"""A document's index in the list that was cached, and positions t in it: int64 [n], among its ``predicting``.

Row t is the distribution of token t + 1, made from the hidden state at token t.
"""


class TeacherSignal(Protocol):
    """A source of targets for a fixed list of documents."""

    kind: str
    """``hidden``, ``topk``, ``sampled`` or ``online``."""

    def rows(self, parts: Sequence[Positions], device: torch.device) -> TeacherRows | SpanRows:
        """The teacher's rows for a whole batch, on ``device``: part after part, each in the order given.

        For a pass over the documents ``indices`` whose counted tokens are all learned::

            signal.rows([(i, documents[i].predicting) for i in indices], device)
        """
        ...


class CachedSignal:
    """Targets read from disk; shards are mapped into memory, not loaded."""

    def __init__(self, store: TargetStore, kind: TargetFormat, documents: Sequence[Document]) -> None:
        self.kind: str = store.inputs["kind"]
        self._store, self._form, self._documents = store, kind, documents

    def rows(self, parts: Sequence[Positions], device: torch.device) -> TeacherRows:
        found = []
        for index, positions in parts:
            place = self._store.places[index]
            wanted = _among(self._documents[index], positions)
            shard = self._store.shard(place.shard)
            found.append((shard, place.start, place.start + place.counted, wanted))
        return self._form.decode(found, device)


class OnlineSignal:
    """The teacher itself, run for each batch: nothing on disk, and the teacher in memory while training."""

    kind = "online"

    def __init__(self, teacher: PreTrainedModel, documents: Sequence[Document], dtype: Dtype) -> None:
        self._pass = ForwardPass(teacher, documents, dtype)

    def rows(self, parts: Sequence[Positions], device: torch.device) -> DenseRows:
        hidden = self._pass.hidden([index for index, _ in parts])
        wanted = [_among(self._pass.documents[index], positions) for index, positions in parts]
        chosen = [hidden_PD[w.to(hidden_PD.device)] for hidden_PD, w in zip(hidden, wanted, strict=True)]
        return DenseRows(torch.cat(chosen).to(device), self._pass.head.to(device))


def cache_targets(
    teacher: PreTrainedModel,
    documents: Sequence[Document],
    objective: Objective,
    directory: str | Path,
    *,
    seed: int,
    dtype: Dtype = "auto",
    vocab_size: int | None = None,
) -> TeacherSignal:
    """Runs the teacher over ``documents`` and keeps what ``objective.targets`` says.

    A killed run goes on where it stopped, and ends with the same bytes.

    Args:
        teacher: left as it is; it may be on any device.
        directory: made if need be; holds an index and shards (:mod:`.target_store`).
        seed: of the draws of ``sampled``.
        dtype: compute type of the teacher's passes; hidden states are kept in it.
        vocab_size: the student's padded vocabulary, so that ``topk`` and ``sampled`` are taken from the ids
            that both have; default: the teacher's.

    Raises:
        RecipeError: these targets cannot serve this objective.
        IntegrityError: the directory holds targets of other documents, another teacher or objective.
        ContextLengthError: a document is longer than the teacher can read.
    """
    require_supported(objective)
    directory = Path(directory)
    if objective.targets == "online":
        return OnlineSignal(teacher, documents, dtype)
    runner = ForwardPass(teacher, documents, dtype)
    shared = min(runner.head.vocab_size, vocab_size or runner.head.vocab_size)
    kind = _kind(objective, shared, seed, runner)
    inputs = kind.inputs() | {
        "documents": documents_hash(documents),
        "teacher": model_digest(teacher),
        "dtype": str(runner.head.weight_VD.dtype).removeprefix("torch."),
    }
    facts = {"softcap": runner.head.softcap, "scale": runner.head.scale}
    store = TargetStore.start(directory, inputs, facts, documents)
    if objective.targets == "hidden" and not (directory / HEAD_FILE).exists():
        save_head(runner.head, directory / HEAD_FILE)
    _write_missing(store, kind, runner)
    return CachedSignal(store, kind, documents)


def open_targets(
    directory: str | Path,
    documents: Sequence[Document],
    objective: Objective,
    *,
    teacher: PreTrainedModel | None = None,
    dtype: Dtype = "auto",
) -> TeacherSignal:
    """Opens what :func:`cache_targets` wrote, or runs the teacher when ``objective.targets`` is ``online``.

    Args:
        documents: the same, in the same order, as were cached.
        teacher: needed for ``online``; for cached targets it is only checked against, when given.

    Raises:
        RecipeError: these targets cannot serve this objective.
        IntegrityError: nothing is cached there, not all is, or it was made from something else.
    """
    require_supported(objective)
    if objective.targets == "online":
        assert teacher is not None
        return OnlineSignal(teacher, documents, dtype)
    store = TargetStore.load(Path(directory))
    inputs = {"kind": objective.targets, "documents": documents_hash(documents)}
    if teacher is not None:
        inputs["teacher"] = model_digest(teacher)
    store.require(inputs)
    if objective.targets == "hidden":
        kind: TargetFormat = HiddenFormat(load_head(store.directory / HEAD_FILE, store.facts))
    elif objective.targets == "topk":
        kind = TopKFormat(objective, store.inputs["vocab_size"])
    else:
        kind = SampledFormat(objective, store.inputs["vocab_size"], store.inputs["seed"])
    store.require(kind.inputs())
    for shard in range(len(store.shards)):
        store.shard(shard)
    return CachedSignal(store, kind, documents)


def _kind(objective: Objective, vocab_size: int, seed: int, runner: ForwardPass) -> TargetFormat:
    if objective.targets == "hidden":
        return HiddenFormat(runner.head)
    if objective.targets == "topk":
        return TopKFormat(objective, vocab_size)
    return SampledFormat(objective, vocab_size, seed)


def _write_missing(store: TargetStore, kind: TargetFormat, runner: ForwardPass) -> None:
    missing = store.missing()
    tokens = [sum(store.places[i].tokens for i in documents) for documents in store.shards]
    remaining = sum(tokens[shard] for shard in missing)
    with console.progress("targets", sum(tokens), "tokens", done=sum(tokens) - remaining) as progress:
        for shard in missing:
            documents = store.shards[shard]
            with torch.no_grad():
                store.write(shard, kind.encode(runner.hidden(documents), runner.head, documents))
            progress.advance(tokens[shard])


def _among(document: Document, positions: np.ndarray) -> torch.Tensor:
    """Where ``positions`` stand among the document's kept ones."""
    places = np.searchsorted(document.predicting, positions)
    assert np.array_equal(document.predicting[places], positions), "only predicting positions are kept"
    return torch.from_numpy(places)
