"""Tiny random models and documents that the training tests share, and slow obvious oracles."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from stillhouse.distill.data.documents import Document
from stillhouse.distill.forward.packing import collate, hidden_states, use_attention

VOCABULARY = 64
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "initializer_range": 0.2,  # wide, so that what a token sees matters
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
WINDOW = 4


def llama(**changes) -> PreTrainedModel:
    """A random llama whose head is tied to its embeddings."""
    return _made(LlamaForCausalLM, LlamaConfig(**SIZES | {"tie_word_embeddings": True} | changes))


ARCHITECTURES = {
    "llama": llama,
    "qwen2": lambda: _made(Qwen2ForCausalLM, Qwen2Config(**SIZES)),
    "qwen2_window": lambda: _made(
        Qwen2ForCausalLM,
        Qwen2Config(**SIZES, use_sliding_window=True, sliding_window=WINDOW, max_window_layers=1),
    ),
    "qwen3": lambda: _made(Qwen3ForCausalLM, Qwen3Config(**SIZES)),
    "gemma3": lambda: _made(
        Gemma3ForCausalLM,
        Gemma3TextConfig(**SIZES, sliding_window=WINDOW, layer_types=["sliding_attention", "full_attention"]),
    ),
    "gemma2": lambda: _made(
        Gemma2ForCausalLM,
        Gemma2Config(**SIZES, attn_logit_softcapping=0.2, final_logit_softcapping=2.0),
        attn_implementation="eager",
    ),
}


def _made(kind, config, **options) -> PreTrainedModel:
    torch.manual_seed(1)
    return kind._from_config(config, **options).eval()


def documents_of(lengths: Sequence[int], *, seed: int = 0) -> list[Document]:
    """Random documents; the second half of each is to be learned, its last token included."""
    generator = np.random.default_rng(seed)
    documents = []
    for number, length in enumerate(lengths):
        loss = np.arange(length) >= max(1, length // 2)
        ids = generator.integers(0, VOCABULARY, length, dtype=np.int32)
        documents.append(Document(f"doc-{number}", ids, loss))
    return documents


def naive_loss_sum(model: PreTrainedModel, documents: Sequence[Document]) -> Tensor:
    """Cross-entropy summed over counted tokens, one token at a time from each document's own logits."""
    total = torch.zeros(())
    for document in documents:
        ids = torch.from_numpy(document.ids.astype(np.int64))
        logits_TV = model(input_ids=ids[None], use_cache=False).logits[0]
        for t in range(1, len(document)):
            if document.loss[t]:
                total = total + F.cross_entropy(logits_TV[t - 1][None], ids[t][None])
    return total


def gradients_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """Every parameter's gradient, cloned."""
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def loss_in_one_pass(model: PreTrainedModel, documents: Sequence[Document], layout: str) -> Tensor:
    """Cross-entropy summed over the counted tokens, by one pass of our own layout."""
    batch = collate(documents, layout, torch.device("cpu"))
    with use_attention(model, layout):
        hidden_ND = hidden_states(model.get_decoder(), batch)
    logits_NV = model.lm_head(hidden_ND)
    cap = getattr(model.config, "final_logit_softcapping", None)
    if cap:
        logits_NV = cap * torch.tanh(logits_NV / cap)
    return F.cross_entropy(logits_NV, batch.labels_N, reduction="sum")
