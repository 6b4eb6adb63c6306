"""Teacher targets for every token: computed once and cached, or computed anew for each batch.

A loss does not know where its targets come from: it gets rows (:mod:`stillhouse.distill.loss.teacher_rows`)
from a :class:`TeacherSignal`. Cached targets record the documents, the teacher and the fields of the
objective that they depend on, and are refused for any others.

Only positions that predict a counted token are stored (``Document.predicting``).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import torch

from stillhouse.console import console
from stillhouse.distill.data.documents import Document, documents_hash
from stillhouse.distill.forward.forward_pass import ForwardPass, model_digest, model_of
from stillhouse.distill.loss.logit_losses import require_supported
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
from stillhouse.errors import UsageError
from stillhouse.recipe import Objective

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stillhouse.distill.loss.cross_tokenizer import SpanRows
    from stillhouse.models import Weights

Dtype = Literal["auto", "bfloat16", "float32"]
HEAD_FILE = "head.safetensors"
DocumentPositions = tuple[int, np.ndarray]
"""A document's index in the cached list, and positions t in it: int64 [n], among its ``predicting``.

Row t is the distribution of token t + 1, computed from the hidden state at token t.
"""


class TeacherSignal(Protocol):
    """A source of targets for a fixed list of documents."""

    kind: str
    """``hidden``, ``topk``, ``sampled`` or ``online``."""

    def rows(self, requests: Sequence[DocumentPositions], device: torch.device) -> TeacherRows | SpanRows:
        """The teacher's rows for a whole batch, on ``device``, in the order of ``requests``.

        For a pass over the documents ``indices`` whose counted tokens are all learned::

            signal.rows([(i, documents[i].predicting) for i in indices], device)
        """
        ...


class CachedSignal:
    """Targets read from disk; shards are mapped into memory, not loaded."""

    def __init__(
        self,
        store: TargetStore,
        target_format: TargetFormat,
        documents: Sequence[Document],
        objective: Objective | None = None,
    ) -> None:
        self.kind: str = store.inputs["kind"]
        self.objective = objective
        self._store, self._format, self._documents = store, target_format, documents

    def rows(self, requests: Sequence[DocumentPositions], device: torch.device) -> TeacherRows:
        slices = []
        for index, positions in requests:
            location = self._store.locations[index]
            row_numbers = _row_numbers(self._documents[index], positions)
            shard = self._store.shard(location.shard)
            slices.append((shard, location.start, location.start + location.counted, row_numbers))
        return self._format.decode(slices, device)


class OnlineSignal:
    """Runs the teacher for each batch: nothing on disk, and the teacher in memory while training."""

    kind = "online"

    def __init__(
        self,
        teacher: PreTrainedModel,
        documents: Sequence[Document],
        dtype: Dtype,
        objective: Objective | None = None,
    ) -> None:
        self.objective = objective
        self._pass = ForwardPass(teacher, documents, dtype)

    def rows(self, requests: Sequence[DocumentPositions], device: torch.device) -> DenseRows:
        hidden = self._pass.hidden([index for index, _ in requests])
        row_numbers = [_row_numbers(self._pass.documents[index], positions) for index, positions in requests]
        selected = [
            hidden_PD[numbers.to(hidden_PD.device)]
            for hidden_PD, numbers in zip(hidden, row_numbers, strict=True)
        ]
        return DenseRows(torch.cat(selected).to(device), self._pass.head.to(device))


def cache_targets(
    teacher: Weights | PreTrainedModel,
    documents: Sequence[Document],
    objective: Objective | None = None,
    directory: str | Path | None = None,
    *,
    seed: int = 0,
    dtype: Dtype = "auto",
    vocab_size: int | None = None,
) -> TeacherSignal:
    """Runs the teacher over ``documents`` and stores its targets in the format ``objective.targets``.

    A killed run resumes with the first missing shard, and ends with the same bytes.

    Args:
        teacher: a model, or what `load` and `load_weights` return; not changed; it may be on any device.
        documents: the student's, from `tokenize`: both models read the same tokens.
        objective: what the student will minimise, by default forward KL with `targets: hidden`, which is
            exact and stores one hidden state a token. ``targets: online`` stores nothing.
        directory: created if missing; holds an index and shards (:mod:`.store`). Required unless ``online``.
        seed: of the draws of ``sampled``.
        dtype: compute type of the teacher's passes; hidden states are stored in it.
        vocab_size: the student's padded vocabulary, so that ``topk`` and ``sampled`` cover the ids that both
            have; default: the teacher's.

    Raises:
        RecipeError: these targets cannot be used with this objective.
        IntegrityError: the directory holds targets of other documents, another teacher or objective.
        ContextLengthError: a document is longer than the teacher can read.
        ModelError: a document has token ids that the teacher does not have.
        UsageError: there is no directory.
    """
    objective = Objective() if objective is None else objective
    teacher = model_of(teacher)
    require_supported(objective)
    if objective.targets == "online":
        return OnlineSignal(teacher, documents, dtype, objective)
    if directory is None:
        raise UsageError("cached targets need a directory", hint="Name one, or use targets='online'.")
    directory = Path(directory)
    runner = ForwardPass(teacher, documents, dtype)
    shared = min(runner.head.vocab_size, vocab_size or runner.head.vocab_size)
    target_format = _format(objective, shared, seed, runner)
    inputs = target_format.inputs() | {
        "documents": documents_hash(documents),
        "teacher": model_digest(teacher),
        "dtype": str(runner.head.weight_VD.dtype).removeprefix("torch."),
    }
    metadata = {"softcap": runner.head.softcap, "scale": runner.head.scale}
    store = TargetStore.start(directory, inputs, metadata, documents)
    if objective.targets == "hidden" and not (directory / HEAD_FILE).exists():
        save_head(runner.head, directory / HEAD_FILE)
    _write_missing(store, target_format, runner)
    return CachedSignal(store, target_format, documents, objective)


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
        documents: the cached documents, in the same order.
        teacher: required for ``online``; with cached targets, only checked to be the same teacher.

    Raises:
        RecipeError: these targets cannot be used with this objective.
        IntegrityError: the directory has no targets, not all of them, or targets of something else.
    """
    require_supported(objective)
    if objective.targets == "online":
        assert teacher is not None
        return OnlineSignal(teacher, documents, dtype, objective)
    store = TargetStore.load(Path(directory))
    inputs = {"kind": objective.targets, "documents": documents_hash(documents)}
    if teacher is not None:
        inputs["teacher"] = model_digest(teacher)
    store.require(inputs)
    if objective.targets == "hidden":
        target_format: TargetFormat = HiddenFormat(load_head(store.directory / HEAD_FILE, store.metadata))
    elif objective.targets == "topk":
        target_format = TopKFormat(objective, store.inputs["vocab_size"])
    else:
        target_format = SampledFormat(objective, store.inputs["vocab_size"], store.inputs["seed"])
    store.require(target_format.inputs())
    # A missing or damaged shard is reported now, not in the middle of training.
    for shard in range(len(store.shards)):
        store.shard(shard)
    return CachedSignal(store, target_format, documents, objective)


def _format(objective: Objective, vocab_size: int, seed: int, runner: ForwardPass) -> TargetFormat:
    if objective.targets == "hidden":
        return HiddenFormat(runner.head)
    if objective.targets == "topk":
        return TopKFormat(objective, vocab_size)
    return SampledFormat(objective, vocab_size, seed)


def _write_missing(store: TargetStore, target_format: TargetFormat, runner: ForwardPass) -> None:
    missing = store.missing_shards()
    tokens = [sum(store.locations[i].tokens for i in documents) for documents in store.shards]
    remaining = sum(tokens[shard] for shard in missing)
    with console.progress("targets", sum(tokens), "tokens", done=sum(tokens) - remaining) as progress:
        for shard in missing:
            documents = store.shards[shard]
            with torch.no_grad():
                hidden = runner.hidden(documents)
                store.write(shard, target_format.encode(hidden, runner.head, documents))
            progress.advance(tokens[shard])


def _row_numbers(document: Document, positions: np.ndarray) -> torch.Tensor:
    """The document's stored row for each of ``positions``."""
    numbers = np.searchsorted(document.predicting, positions)
    assert np.array_equal(document.predicting[numbers], positions), "only predicting positions are stored"
    return torch.from_numpy(numbers)
