"""Layouts of a forward pass: documents packed in one row, or padded where packing is not safe.

Packing wastes almost no token (a row is filled up to a multiple of 128), but is correct only for models
whose attention can be confined to a document. :func:`choose_layout` does not trust a model's name: it runs
the model on three short documents, packed and alone, and compares. Neighbours in a row that answer the same
prompt share it (:mod:`.prompt_sharing`).

Shapes: S tokens of a pass, B rows, T tokens of a row, N positions that predict a counted token.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from stillhouse.distill.data.batch_schedule import micro_batches
from stillhouse.distill.data.documents import Document
from stillhouse.distill.forward import packed_attention
from stillhouse.distill.forward.prompt_sharing import MIN_SHARED_PROMPT, prompt_sharing_batches, share_prompts
from stillhouse.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

FLASH = "flash_attention_2"
PADDED = "padded"
ROW_MULTIPLE = 128
"""Row lengths are multiples of it: a CPU compiles kernels for each new length (1.3 times slower without)."""

TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.bfloat16: 0.05, torch.float16: 0.01}
"""Largest relative difference of hidden states that counts as rounding, by dtype. Measured on SmolLM2-135M:
1e-6 in float32 and 0.014 in bfloat16; 0.4 where documents attend to each other."""


@dataclass(frozen=True, eq=False)
class Batch:
    """Input of one forward pass.

    Args:
        inputs: keyword arguments of the decoder.
        predicting_N: indices into the flattened hidden states [B*T, D] whose next token is learned.
        labels_N: those tokens.
    """

    inputs: dict[str, Any]
    predicting_N: Tensor
    labels_N: Tensor


def split_into_passes(
    indices: Sequence[int],
    documents: Sequence[Document],
    micro_tokens: int,
    layout: str,
    *,
    switch: int | None = None,
) -> list[tuple[int, ...]]:
    """Splits the documents ``indices`` into passes of at most ``micro_tokens`` tokens each.

    Args:
        switch: from :func:`stillhouse.models.rotation_switch`; documents of more tokens do not share a pass
            with the others.
    """
    if switch is not None:
        sides = [[i for i in indices if (len(documents[i]) > switch) == beyond] for beyond in (False, True)]
        return [
            batch
            for side in sides
            if side
            for batch in split_into_passes(side, documents, micro_tokens, layout)
        ]
    if layout == packed_attention.NAME:
        return prompt_sharing_batches(indices, documents, micro_tokens)
    lengths = [len(document) for document in documents]
    return micro_batches(indices, lengths, micro_tokens, padded=layout == PADDED)


def collate(documents: Sequence[Document], layout: str, device: torch.device) -> Batch:
    """Makes one batch of ``documents``, in their order.

    Args:
        layout: from :func:`choose_layout`.
    """
    if layout == PADDED:
        # Padding is on the right, so no token of a causal model attends to it.
        width = max(map(len, documents))
        ids = np.zeros((len(documents), width), dtype=np.int64)
        for row, document in zip(ids, documents, strict=True):
            row[: len(document)] = document.ids
        predicting = np.concatenate([width * i + d.predicting for i, d in enumerate(documents)])
        inputs: dict[str, Any] = {}
    else:
        ids, predicting, inputs = _packed(documents, layout, device)
    inputs |= {"input_ids": torch.from_numpy(ids).to(device), "use_cache": False}
    labels = np.concatenate([document.labels for document in documents]).astype(np.int64)
    return Batch(inputs, torch.from_numpy(predicting).to(device), torch.from_numpy(labels).to(device))


def _packed(
    documents: Sequence[Document], layout: str, device: torch.device
) -> tuple[np.ndarray, np.ndarray, dict[str, Any]]:
    """Token ids [1, S], predicting positions in the row, and the segments as arguments of the attention."""
    # Flash attention's kernel takes separate documents only.
    row = share_prompts(documents, share=layout != FLASH)
    filler = -len(row.ids) % ROW_MULTIPLE  # a last document with no token to learn
    ids = np.concatenate([row.ids, np.zeros(filler, dtype=np.int32)]).astype(np.int64)[None]
    # No further than the documents, since the last position can decide how all tokens are rotated.
    filler_positions = np.minimum(np.arange(filler), row.positions.max())
    positions = np.concatenate([row.positions, filler_positions])[None]
    lengths = row.lengths + ([filler] if filler else [])
    inputs = {"position_ids": torch.from_numpy(positions).to(device)}
    if layout == FLASH:
        inputs |= _flash_inputs(lengths, device)
    else:
        inputs |= {
            "segment_lengths": lengths,
            "prefix_segments": row.prefix_segments + ([None] if filler else []),
        }
    return ids, row.predicting, inputs


def _flash_inputs(lengths: list[int], device: torch.device) -> dict[str, Any]:
    """Document boundaries in the format of flash attention's variable-length kernel."""
    bounds = torch.tensor(np.cumsum([0, *lengths]), dtype=torch.int32, device=device)
    longest = max(lengths)
    return {
        "cu_seq_lens_q": bounds,
        "cu_seq_lens_k": bounds,
        "max_length_q": longest,
        "max_length_k": longest,
    }


def hidden_states(decoder: torch.nn.Module, batch: Batch) -> Tensor:
    """The decoder's last hidden states at the positions that predict counted tokens, [N, D]."""
    hidden_BTD = decoder(**batch.inputs).last_hidden_state
    return hidden_BTD.flatten(0, 1).index_select(0, batch.predicting_N)


def choose_layout(model: PreTrainedModel, dtype: torch.dtype) -> str:
    """Chooses how documents share a pass: the name of a packed attention, or ``"padded"``.

    Runs three short documents, two of them with one prompt, in one packed row and, with the model's own
    attention, each alone: through ``model``, and through a tiny random copy of it whose sliding windows are
    shorter than they are. If the hidden states differ by more than rounding (a model with soft-capped scores,
    sinks, recurrent layers, or attention outside transformers' interface), rows are padded instead.

    Args:
        model: in eval mode; not changed.
        dtype: the compute type; flash attention needs bfloat16.
    """
    from transformers.utils.import_utils import is_flash_attn_2_available

    if not _packs(model) or not _copy_packs(model):
        return PADDED
    if model.device.type == "cuda" and dtype == torch.bfloat16 and is_flash_attn_2_available():
        return FLASH
    return packed_attention.NAME


def _copy_packs(model: PreTrainedModel) -> bool:
    """Whether a tiny copy of ``model`` can be packed; True where there is none."""
    from stillhouse.models import architecture_key, tiny_copy

    try:
        key = architecture_key(type(model), model.config)
        if key not in _copies_that_pack:
            _copies_that_pack[key] = _packs(tiny_copy(type(model), model.config))
    except ModelError:
        return True
    return _copies_that_pack[key]


_copies_that_pack: dict[Hashable, bool] = {}


@torch.no_grad()
def _packs(model: PreTrainedModel) -> bool:
    """Whether a packed row gives the hidden states of each document alone."""
    vocabulary = model.config.get_text_config().vocab_size
    tokens = (
        np.arange(MIN_SHARED_PROMPT + 12, dtype=np.int32) * 7919 % vocabulary
    )  # any varied tokens will do
    prompt, rest = np.split(tokens, [MIN_SHARED_PROMPT])
    documents = [Document("", rest[:5], np.ones(5, dtype=bool))]
    for answer in (rest[5:8], rest[8:]):
        ids = np.concatenate([prompt, answer])
        documents.append(Document("", ids, np.arange(len(ids)) >= MIN_SHARED_PROMPT))
    alone = [hidden_states(model.get_decoder(), collate([d], PADDED, model.device)) for d in documents]
    with use_attention(model, packed_attention.NAME) as supported:
        if not supported:
            return False
        try:
            packed = hidden_states(
                model.get_decoder(), collate(documents, packed_attention.NAME, model.device)
            )
        except NotImplementedError:
            return False
    difference = torch.cat(alone) - packed
    return bool(difference.norm() <= TOLERANCE[model.dtype] * packed.norm())


@contextlib.contextmanager
def use_attention(model: PreTrainedModel, layout: str) -> Iterator[bool]:
    """Makes ``model`` use the attention of ``layout`` inside the block; yields whether the model can."""
    before = str(model.config._attn_implementation)
    required = before if layout == PADDED else layout
    if required != before:
        if not model._can_set_attn_implementation():
            yield False
            return
        model.set_attn_implementation(required)
    try:
        yield True
    finally:
        if required != before:
            model.set_attn_implementation(before)
