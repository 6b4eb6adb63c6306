"""Forward passes of a model over documents: its last hidden states at the positions to learn.

Nothing is stored and no gradient is computed.

Shapes: N positions that predict a counted token, D the model's hidden size.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from stillhouse.distill.data.documents import Document
from stillhouse.distill.forward.packing import (
    choose_layout,
    collate,
    hidden_states,
    split_into_passes,
    use_attention,
)
from stillhouse.distill.forward.precision import WorkingCopy, compute_dtype
from stillhouse.distill.loss.lm_head import LMHead, lm_head_of
from stillhouse.errors import ContextLengthError
from stillhouse.hashing import sha256_bytes, sha256_json
from stillhouse.models import embedding_rows, require_ids, rotation_switch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stillhouse.models import Weights

PASS_TOKENS = 4096
"""Tokens of one forward pass."""
DIGEST_ENTRIES = 4096
"""Entries of each parameter that :func:`model_digest` reads."""


class ForwardPass:
    """A model (a teacher, or a model to evaluate) prepared for forward passes over documents.

    Args:
        model: not changed; it is copied if ``dtype`` is another type.
        dtype: ``auto`` is bfloat16 where the hardware multiplies it.

    Raises:
        ContextLengthError: a document is longer than the model's context.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        documents: Sequence[Document],
        dtype: Literal["auto", "bfloat16", "float32"] = "auto",
    ) -> None:
        self.documents = documents
        require_readable(model, documents)
        was_training = model.training
        model.eval()
        compute = compute_dtype(dtype, model.device)
        self.layout = choose_layout(model, compute)
        self.switch = rotation_switch(model.config)
        self.module = WorkingCopy(model, compute).module
        self.head = _without_gradient(lm_head_of(self.module))
        model.train(was_training)

    def for_documents(self, documents: Sequence[Document]) -> ForwardPass:
        """The same model over other documents."""
        require_readable(self.module, documents)
        other = copy.copy(self)
        other.documents = documents
        return other

    @torch.no_grad()
    def hidden(self, indices: Sequence[int]) -> list[Tensor]:
        """The hidden states of the documents ``indices``, in that order, each [N, D] at its ``predicting``.

        Documents of similar length, or of one prompt, share a pass; no document attends to another.
        """
        by_document: dict[int, Tensor] = {}
        was_training = self.module.training
        self.module.eval()
        with use_attention(self.module, self.layout):
            for batch in split_into_passes(
                indices, self.documents, PASS_TOKENS, self.layout, switch=self.switch
            ):
                documents = [self.documents[i] for i in batch]
                hidden_ND = hidden_states(
                    self.module.get_decoder(), collate(documents, self.layout, self.module.device)
                )
                counts = [document.counted for document in documents]
                by_document |= dict(zip(batch, hidden_ND.split(counts), strict=True))
        self.module.train(was_training)
        return [by_document[i] for i in indices]


def model_of(model: Weights | PreTrainedModel) -> PreTrainedModel:
    """The model itself, from what `load_weights` returns or from transformers."""
    from stillhouse.models import Weights

    return model.model if isinstance(model, Weights) else model


def model_digest(model: PreTrainedModel) -> str:
    """A quick hash that identifies a model: of names, shapes and evenly spaced entries of its parameters."""
    summaries = []
    for name, parameter in model.named_parameters():
        flat = parameter.detach().flatten()
        step = max(1, len(flat) // DIGEST_ENTRIES)
        summaries.append(
            [name, list(parameter.shape), sha256_bytes(flat[::step].float().cpu().numpy().tobytes())]
        )
    return sha256_json(summaries)


def _without_gradient(head: LMHead) -> LMHead:
    bias_V = None if head.bias_V is None else head.bias_V.detach()
    return replace(head, weight_VD=head.weight_VD.detach(), bias_V=bias_V)


def require_readable(
    model: PreTrainedModel, documents: Sequence[Document], *, role: Literal["model", "student"] = "model"
) -> None:
    """Checks that every document fits into the model's context, and that its embedding has every token.

    Args:
        role: of the model, in the error.

    Raises:
        ContextLengthError: names the longest document.
        ModelError: names a document with a token beyond the embedding.
    """
    context = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    longest = max(documents, key=len, default=None)
    if context is not None and longest is not None and len(longest) > context:
        raise ContextLengthError(
            f"document {longest.id} has {len(longest)} tokens, and the {role} reads at most {context}",
            hint=f"Set train.max_length to {context} or less; a private context adds to the length.",
        )
    rows = embedding_rows(model)
    for document in documents:
        require_ids(document.ids, rows, where=f"document {document.id}")
