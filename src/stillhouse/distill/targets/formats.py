"""Storage formats of a teacher's distributions: how each is computed, written and read.

=========  ===================================  ==========================================
hidden     last hidden states, the head once    exact up to the dtype the teacher ran in
topk       k ids, their log-probabilities, and  exact for distributions whose other ids are
           that of the rest                     merged, up to float16
sampled    ids drawn with replacement, counts   unbiased for the gradient of forward KL
=========  ===================================  ==========================================

Shapes: P rows of a document, D the teacher's hidden size, V vocabulary, K listed ids, R draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from stillhouse.distill.loss.lm_head import LMHead
from stillhouse.distill.loss.logit_losses import soften
from stillhouse.distill.loss.teacher_rows import DenseRows, SampledRows, TeacherRows, TopKRows
from stillhouse.errors import RecipeError
from stillhouse.files import atomic_write
from stillhouse.recipe import Objective

CHUNK = 128
"""Rows whose logits exist at once."""

ShardSlice = tuple[Any, int, int, Tensor]
"""An open shard, a document's first and last row (exclusive) in it, and which of these rows to read."""


class TargetFormat(Protocol):
    """A storage format of targets."""

    def inputs(self) -> dict[str, Any]:
        """The fields of the objective that determine the content."""
        ...

    def encode(
        self, hidden_PD: Sequence[Tensor], head: LMHead, documents: Sequence[int]
    ) -> dict[str, Tensor]:
        """Computes the tensors of a shard of ``documents`` from their hidden states."""
        ...

    def decode(self, slices: Sequence[ShardSlice], device: torch.device) -> TeacherRows:
        """The rows of all ``slices``, in order, on ``device``."""
        ...


class HiddenFormat:
    """Hidden states as they are."""

    def __init__(self, head: LMHead) -> None:
        self._heads = {head.weight_VD.device: head}

    def inputs(self) -> dict[str, Any]:
        return {"kind": "hidden"}

    def rows(self, hidden_ND: Tensor, head: LMHead) -> DenseRows:
        """The rows of hidden states that are not stored."""
        return DenseRows(hidden_ND, head)

    def encode(
        self, hidden_PD: Sequence[Tensor], head: LMHead, documents: Sequence[int]
    ) -> dict[str, Tensor]:
        return {"hidden": torch.cat(list(hidden_PD)).cpu()}

    def decode(self, slices: Sequence[ShardSlice], device: torch.device) -> DenseRows:
        if device not in self._heads:
            self._heads[device] = next(iter(self._heads.values())).to(device)
        hidden = [
            file.get_slice("hidden")[first:last][row_numbers] for file, first, last, row_numbers in slices
        ]
        return DenseRows(torch.cat(hidden).to(device), self._heads[device])


class TopKFormat:
    """The k likeliest ids at the objective's temperature, and the tail."""

    def __init__(self, objective: Objective, vocab_size: int) -> None:
        if objective.top_k >= vocab_size:
            raise RecipeError(
                f"objective.top_k: {objective.top_k} is not below the vocabulary of {vocab_size}",
                hint="Use fewer, or `targets: hidden`, which keeps the whole distribution.",
            )
        self.temperature, self.k, self.vocab_size = objective.temperature, objective.top_k, vocab_size

    def inputs(self) -> dict[str, Any]:
        return {
            "kind": "topk",
            "temperature": self.temperature,
            "top_k": self.k,
            "vocab_size": self.vocab_size,
        }

    def rows(self, hidden_ND: Tensor, head: LMHead) -> TopKRows:
        """The rows of hidden states that are not stored, without rounding; on their device."""
        chunks = list(self._top_k(hidden_ND, head))
        return TopKRows(
            torch.cat([ids for ids, _ in chunks]), torch.cat([logp for _, logp in chunks]), self.vocab_size
        )

    def encode(
        self, hidden_PD: Sequence[Tensor], head: LMHead, documents: Sequence[int]
    ) -> dict[str, Tensor]:
        ids, logp = [], []
        for ids_CK, logp_CK1 in self._top_k(torch.cat(list(hidden_PD)), head):
            ids.append(ids_CK.to(_id_dtype(self.vocab_size)).cpu())
            logp.append(logp_CK1.to(torch.float16).cpu())
        return {"ids": torch.cat(ids), "logp": torch.cat(logp)}

    def _top_k(self, hidden_ND: Tensor, head: LMHead) -> Iterator[tuple[Tensor, Tensor]]:
        for logp_CV in _softened(hidden_ND, head, self.vocab_size, self.temperature):
            top = logp_CV.topk(self.k, dim=-1)
            tail_C1 = logp_CV.scatter_(1, top.indices, -torch.inf).logsumexp(dim=-1, keepdim=True)
            yield top.indices, torch.cat([top.values, tail_C1], dim=1)

    def decode(self, slices: Sequence[ShardSlice], device: torch.device) -> TopKRows:
        # Converted before indexing: torch cannot index uint16.
        ids = [file.get_slice("ids")[a:b].to(torch.int64)[row_numbers] for file, a, b, row_numbers in slices]
        logp = [file.get_slice("logp")[a:b][row_numbers].float() for file, a, b, row_numbers in slices]
        # Rounding to float16 leaves sums that differ a little from 1.
        logp_NK1 = torch.cat(logp).to(device).log_softmax(dim=-1)
        return TopKRows(torch.cat(ids).to(device), logp_NK1, self.vocab_size)


class SampledFormat:
    """Ids drawn from the teacher at the objective's temperature (Anshumann et al. 2025, section 4).

    Rows differ in their number of distinct ids; a shard holds them end to end, and ``starts`` has the offset
    of each row. A document's draws depend only on the seed and its index.
    """

    def __init__(self, objective: Objective, vocab_size: int, seed: int) -> None:
        self.temperature, self.draws = objective.temperature, objective.top_k
        self.vocab_size, self.seed = vocab_size, seed

    def inputs(self) -> dict[str, Any]:
        return {
            "kind": "sampled",
            "temperature": self.temperature,
            "top_k": self.draws,
            "vocab_size": self.vocab_size,
            "seed": self.seed,
        }

    def encode(
        self, hidden_PD: Sequence[Tensor], head: LMHead, documents: Sequence[int]
    ) -> dict[str, Tensor]:
        draws = []
        for document, document_hidden_PD in zip(documents, hidden_PD, strict=True):
            # A seed for each document, so that a resumed run draws the same ids in any order of shards.
            document_seed = np.random.SeedSequence([self.seed, document]).generate_state(1, np.uint64)[0]
            generator = torch.Generator().manual_seed(int(document_seed))
            for logp_CV in _softened(document_hidden_PD, head, self.vocab_size, self.temperature):
                draws.append(draw(logp_CV.exp().cpu(), self.draws, generator))
        ids, counts, lengths = count_draws(torch.cat(draws))
        return {
            "ids": ids.to(_id_dtype(self.vocab_size)),
            "counts": counts.to(_id_dtype(self.draws + 1)),
            "starts": torch.cat([lengths.new_zeros(1), lengths.cumsum(0)]),
        }

    def decode(self, slices: Sequence[ShardSlice], device: torch.device) -> SampledRows:
        ids, counts = [], []
        for file, first, last, row_numbers in slices:
            starts = file.get_slice("starts")[first : last + 1]
            span = slice(int(starts[0]), int(starts[-1]))
            lengths = starts.diff().tolist()
            for flat, rows in ((file.get_slice("ids"), ids), (file.get_slice("counts"), counts)):
                by_row = flat[span].to(torch.int64).split(lengths)
                rows += [by_row[row] for row in row_numbers.tolist()]
        pad = torch.nn.utils.rnn.pad_sequence
        ids_NK, counts_NK = pad(ids, batch_first=True), pad(counts, batch_first=True)
        return SampledRows(ids_NK.to(device), counts_NK.to(device).float(), self.vocab_size)


def draw(p_NV: Tensor, draws: int, generator: torch.Generator) -> Tensor:
    """Draws ``draws`` ids for each row, with replacement, [N, R], by inverting the cumulative sum."""
    # In float64: in float32 the ids of a long tail would add nothing to the sum.
    total_NV = p_NV.double().cumsum(dim=-1)
    uniform_NR = torch.rand(len(p_NV), draws, dtype=torch.float64, generator=generator)
    ids_NR = torch.searchsorted(total_NV, uniform_NR * total_NV[:, -1:], right=True)
    return ids_NR.clamp_(max=p_NV.shape[1] - 1)


def count_draws(ids_NR: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct ids of all rows end to end, the count of each, and the number of distinct ids per row."""
    ids_NR = ids_NR.sort(dim=-1).values
    first_NR = torch.ones_like(ids_NR, dtype=torch.bool)
    first_NR[:, 1:] = ids_NR[:, 1:] != ids_NR[:, :-1]
    offsets = torch.cat([first_NR.flatten().nonzero()[:, 0], torch.tensor([ids_NR.numel()])])
    return ids_NR[first_NR], offsets.diff(), first_NR.sum(dim=-1)


def save_head(head: LMHead, path: Path) -> None:
    """Writes the head's tensors."""
    tensors = {"weight": head.weight_VD} | ({} if head.bias_V is None else {"bias": head.bias_V})
    atomic_write(path, save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))


def load_head(path: Path, metadata: Mapping[str, Any]) -> LMHead:
    """Reads what :func:`save_head` wrote; ``softcap`` and ``scale`` are in the index."""
    tensors = load_file(path)
    return LMHead(tensors["weight"], tensors.get("bias"), metadata["softcap"], metadata["scale"])


def _softened(hidden_ND: Tensor, head: LMHead, vocab_size: int, temperature: float) -> Iterator[Tensor]:
    for hidden_CD in hidden_ND.split(CHUNK):
        yield soften(head.logits(hidden_CD, vocab_size), temperature)


def _id_dtype(vocab_size: int) -> torch.dtype:
    return torch.uint16 if vocab_size <= 2**16 else torch.int32
