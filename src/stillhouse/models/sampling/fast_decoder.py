"""A fast forward pass for models of the llama family: one token for many sequences, or whole prompts.

Compared with the module's own forward pass, it saves the reordering of bfloat16 weights that oneDNN does at
every call (they are packed once here, which takes their memory a second time), five small matrix products in
each layer, and the padding of prompts. On a CPU without bfloat16 products it multiplies the same weights in
float32 (a copy of twice their memory). It has no gradients and no dropout.

A new one is built for each :func:`~stillhouse.models.sampling.batch.sample`, so that it has the current
weights of a model in training. It is used only if it reproduces the module's logits for a few tokens.

Shapes: B sequences, N tokens of several prompts end to end, H heads of keys and values, G query heads for
each of them, D width of a head, E hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from stillhouse.models.sampling.fused_linear import Product, added, gated, joined, product_dtype
from stillhouse.models.sampling.kv_cache import KeyValues

FAMILY = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
FIXED_ROTATIONS = ("default", "linear", "llama3", "yarn")  # the frequencies of others depend on the length
TRIAL = 8  # tokens for the comparison with the module
TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.01}  # × the logits' std


def fast_decoder(model: PreTrainedModel, memory: KeyValues, trial: Sequence[int]) -> FastDecoder | None:
    """The fast decoder of ``model``; None where its architecture has none, or where its logits differ.

    The model must be in eval mode if it has dropout; otherwise the comparison fails.

    Args:
        trial: token ids whose first few are compared.
    """
    config = model.config
    rotation = (getattr(config, "rope_parameters", None) or {}).get("rope_type", "default")
    if (
        type(model).__name__ not in FAMILY
        or rotation not in FIXED_ROTATIONS
        or getattr(config, "hidden_act", None) != "silu"
        or model.dtype not in TOLERANCE
    ):
        return None
    decoder = FastDecoder(model, memory)
    ids = list(trial[:TRIAL])
    module_V = model(torch.tensor([ids], device=model.device), use_cache=False, logits_to_keep=1).logits[
        0, -1
    ]
    ours_V = decoder.prefill([ids], [0])[0]
    if len(ids) > 1:  # also compare a step: the last token once more
        lengths = torch.tensor([len(ids) - 1], device=model.device)
        ours_V = torch.stack([ours_V, decoder.step(torch.tensor(ids[-1:], device=model.device), lengths)[0]])
    error = (ours_V.float() - module_V.float()).abs().mean()
    return decoder if error <= TOLERANCE[model.dtype] * module_V.float().std() else None


class FastDecoder:
    """Prefill and decoding steps of one model, with its keys and values in ``memory``."""

    shares_prefixes = True

    def __init__(self, model: PreTrainedModel, memory: KeyValues) -> None:
        base: Any = model.model
        self.memory = memory
        linears = [module for layer in base.layers for module in _linears(layer)]
        dtype = product_dtype(base.embed_tokens.weight, [*linears, model.lm_head])
        self.embed_VE = base.embed_tokens.weight.to(dtype)
        # Mistral has one window for all layers in its configuration, Qwen one in each layer that has any.
        window = model.config.sliding_window if type(model).__name__ == "MistralForCausalLM" else None
        self.layers = [
            _FastLayer(layer, memory, number, dtype, window) for number, layer in enumerate(base.layers)
        ]
        self.norm = _normed(base.norm)
        self.head = joined([model.lm_head], dtype)
        positions = torch.arange(memory.capacity, device=model.device)
        cos_1TD, sin_1TD = base.rotary_emb(self.embed_VE[:1], positions[None])
        half = cos_1TD.shape[-1] // 2
        signs = torch.cat([-sin_1TD[..., :half], sin_1TD[..., half:]], -1)
        # The sine carries the sign of transformers' rotate_half, so that a plain `roll` can rotate.
        self.cos_TD, self.sin_TD = cos_1TD[0], signs[0]

    def prefill(self, prompts: Sequence[Sequence[int]], slots: Sequence[int]) -> torch.Tensor:
        """Logits [P, V] after each of P prompts. Their keys and values go to the beginning of ``slots``."""
        device = self.embed_VE.device
        self.memory.clear_to(max(map(len, prompts)))
        spans, start = [], 0
        for prompt in prompts:
            spans.append((start, start + len(prompt)))
            start += len(prompt)
        hidden_NE = self.embed_VE[torch.tensor([id for prompt in prompts for id in prompt], device=device)]
        positions_N = torch.cat([torch.arange(len(prompt), device=device) for prompt in prompts])

        def attend(layer: _FastLayer, heads: torch.Tensor) -> torch.Tensor:
            return layer.attend_prompts(heads, spans, slots)

        hidden_NE = self._layers(hidden_NE, positions_N, attend)
        return self._logits(hidden_NE[[end - 1 for _, end in spans]])

    def extend(self, ids: Sequence[int], slot: int, past: int, *, every: bool = False) -> torch.Tensor:
        """Logits [1, V] after ``ids``, which follow the first ``past`` tokens in ``slot`` and are kept there.

        Args:
            every: return the logits after each of the N ids, [N, V].
        """
        total, device = past + len(ids), self.embed_VE.device
        self.memory.clear_to(total)
        positions_N = torch.arange(past, total, device=device)
        masks = {
            window: _seen(positions_N, total, window) for window in {layer.window for layer in self.layers}
        }

        def attend(layer: _FastLayer, heads: torch.Tensor) -> torch.Tensor:
            return layer.attend_more(heads, slot, past, masks[layer.window])

        hidden_NE = self._layers(self.embed_VE[torch.tensor(list(ids), device=device)], positions_N, attend)
        return self._logits(hidden_NE if every else hidden_NE[-1:])

    def step(self, tokens_B: torch.Tensor, lengths_B: torch.Tensor) -> torch.Tensor:
        """Logits [B, V] after one more token of the sequences in the first B slots.

        Args:
            lengths_B: tokens of each sequence in the cache.
        """
        total = int(lengths_B.max()) + 1
        self.memory.clear_to(total)
        masks = {}
        for window in {layer.window for layer in self.layers}:
            hidden_BT = ~_seen(lengths_B, total, window)
            mask_BT = torch.zeros(hidden_BT.shape, dtype=self.cos_TD.dtype, device=lengths_B.device)
            masks[window] = mask_BT.masked_fill_(hidden_BT, -torch.inf)[:, None, None]
        rows_R = self.memory.rows(lengths_B)

        def attend(layer: _FastLayer, heads: torch.Tensor) -> torch.Tensor:
            return layer.attend_step(heads, rows_R, masks[layer.window])

        return self._logits(self._layers(self.embed_VE[tokens_B], lengths_B, attend))

    def _layers(self, hidden: torch.Tensor, positions: torch.Tensor, attend: Callable) -> torch.Tensor:
        cos_N1D, sin_N1D = self.cos_TD[positions][:, None], self.sin_TD[positions][:, None]
        for layer in self.layers:
            hidden = layer(hidden, cos_N1D, sin_N1D, attend)
        return hidden

    def _logits(self, hidden_BE: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(hidden_BE))


class _FastLayer:
    """One decoder layer; the hidden states are [tokens, E] throughout."""

    def __init__(
        self, layer: Any, memory: KeyValues, number: int, dtype: torch.dtype, window: int | None
    ) -> None:
        attention, mlp = layer.self_attn, layer.mlp
        self.window: int | None = getattr(attention, "sliding_window", window)
        """A token attends to itself and to the ``window - 1`` tokens before it; to all of them if None."""
        self.memory, self.number = memory, number
        self.norm_in, self.norm_mlp = map(_normed, (layer.input_layernorm, layer.post_attention_layernorm))
        self.norms_qk = (
            [_normed(attention.q_norm), _normed(attention.k_norm)] if hasattr(attention, "q_norm") else None
        )
        self.width, self.scale = attention.head_dim, attention.scaling
        self.groups = attention.num_key_value_groups
        self.qkv = joined([attention.q_proj, attention.k_proj, attention.v_proj], dtype)
        self.out = added(attention.o_proj, dtype)
        self.gated = gated(mlp.gate_proj, mlp.up_proj, dtype)
        self.down = added(mlp.down_proj, dtype)
        self.one_by_one = layer.input_layernorm.weight.device.type == "cpu" and dtype != torch.float32
        """Whether query heads that share keys are faster as separate heads than as queries of one head."""

    def __call__(
        self, hidden_NE: torch.Tensor, cos_N1D: torch.Tensor, sin_N1D: torch.Tensor, attend: Callable
    ) -> torch.Tensor:
        """The next hidden states; ``attend`` takes the heads of queries, keys and values [N, HG + 2H, D]."""
        heads = self.qkv(self.norm_in(hidden_NE)).view(len(hidden_NE), -1, self.width)
        kv = heads.shape[1] // (self.groups + 2)
        if self.norms_qk:
            queries, keys, values = heads.split([kv * self.groups, kv, kv], 1)
            heads = torch.cat([self.norms_qk[0](queries), self.norms_qk[1](keys), values], 1)
        rotated = heads[:, :-kv]  # queries and keys
        turned = rotated.roll(self.width // 2, -1)
        rotated.mul_(cos_N1D).addcmul_(turned, sin_N1D)
        mixed = attend(self, heads)
        hidden_NE = self.out(mixed.reshape(len(hidden_NE), -1), hidden_NE)
        return self.down(self.gated(self.norm_mlp(hidden_NE)), hidden_NE)

    def attend_step(self, heads: torch.Tensor, rows_R: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Attention of one new token for each sequence, [B, HG, 1, D] or [B, H, G, D]."""
        batch, total = len(heads), mask.shape[-1]
        kv = heads.shape[1] // (self.groups + 2)
        keys, values = self.memory.append(self.number, rows_R, heads[:, -2 * kv :]).split(kv, 1)
        shape = (kv * self.groups, 1) if self.one_by_one else (kv, self.groups)
        return F.scaled_dot_product_attention(
            heads[:, : -2 * kv].reshape(batch, *shape, self.width),
            keys[:batch, :, :total],
            values[:batch, :, :total],
            attn_mask=mask,
            scale=self.scale,
            enable_gqa=True,
        )

    def attend_prompts(
        self, heads: torch.Tensor, spans: Sequence[tuple[int, int]], slots: Sequence[int]
    ) -> torch.Tensor:
        """Causal attention of each prompt to itself, [N, HG, D]."""
        kv = heads.shape[1] // (self.groups + 2)
        outputs = []
        for (start, end), slot in zip(spans, slots, strict=True):
            own = heads[start:end].transpose(0, 1)
            self.memory.write(self.number, (slot, slice(None), slice(end - start)), own[-2 * kv :])
            q_HTD, k_HTD, v_HTD = own[None].split([kv * self.groups, kv, kv], 1)
            length, mask_TT = end - start, None
            if self.window is not None and self.window < length:
                mask_TT = _seen(torch.arange(length, device=heads.device), length, self.window)
            mixed = F.scaled_dot_product_attention(
                q_HTD,
                k_HTD,
                v_HTD,
                attn_mask=mask_TT,
                is_causal=mask_TT is None,
                scale=self.scale,
                enable_gqa=True,
            )
            outputs.append(mixed[0].transpose(0, 1))
        return torch.cat(outputs)

    def attend_more(self, heads: torch.Tensor, slot: int, past: int, mask_NT: torch.Tensor) -> torch.Tensor:
        """Attention of N tokens to themselves and the ``past`` tokens before them in ``slot``, [N, HG, D]."""
        kv = heads.shape[1] // (self.groups + 2)
        own, total = heads.transpose(0, 1), mask_NT.shape[1]
        self.memory.write(self.number, (slot, slice(None), slice(past, total)), own[-2 * kv :])
        pairs = self.memory.layers[self.number]
        assert pairs is not None
        keys_HTD, values_HTD = pairs[slot, :, :total].split(kv)
        mixed = F.scaled_dot_product_attention(
            own[None, : -2 * kv],
            keys_HTD[None],
            values_HTD[None],
            attn_mask=mask_NT,
            scale=self.scale,
            enable_gqa=True,
        )
        return mixed[0].transpose(0, 1)


def _seen(positions_N: torch.Tensor, total: int, window: int | None) -> torch.Tensor:
    """Which of the first ``total`` tokens the tokens at N positions attend to, bool [N, T]."""
    tokens_T = torch.arange(total, device=positions_N.device)
    seen_NT = tokens_T <= positions_N[:, None]
    return seen_NT if window is None else seen_NT & (tokens_T > positions_N[:, None] - window)


def _linears(layer: Any) -> list[Any]:
    attention, mlp = layer.self_attn, layer.mlp
    products = (attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj)
    return [*products, mlp.gate_proj, mlp.up_proj, mlp.down_proj]


def _normed(norm: Any) -> Product:
    """An RMS norm as a function; on a CPU with fewer passes over memory than torch's own."""
    weight, epsilon = norm.weight, norm.variance_epsilon
    if weight.device.type != "cpu":
        return lambda hidden: F.rms_norm(hidden, weight.shape, weight, epsilon)
    wide_weight, epsilon = weight.float(), torch.tensor(epsilon)

    def normed(hidden: torch.Tensor) -> torch.Tensor:
        wide = hidden.float()
        length = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
        inverse = torch.addcmul(epsilon, length, length, value=1 / wide.shape[-1]).rsqrt_()
        return (wide * inverse).mul_(wide_weight).to(hidden.dtype)

    return normed
