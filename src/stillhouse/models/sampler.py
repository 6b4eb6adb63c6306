"""Batched sampling from a transformers model: one forward pass a token for the whole batch.

What makes it faster than ``generate``: keys and values are written into memory that is
laid out once, finished sequences leave the batch, and one uniform number a sequence and
step picks the token. That number comes from the sequence's own seed, so the draw does not
depend on who else is in the batch (the last bits of a bfloat16 pass may).

Models whose layers do not all attend to the whole sequence (sliding windows, state
spaces) are not sampled here; see :func:`can_sample`.

Shapes: B sequences, T tokens of the longest prompt, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer

from .types import Sampling

NUCLEUS_FIRST = 512  # likeliest tokens that are tried for the nucleus before the whole vocabulary is sorted
SHRINK_AT = 0.85  # the batch is made smaller when fewer than this share of it still runs


@dataclass(frozen=True)
class Sampled:
    """The tokens of one answer (the end token included, when it came) and why it ended."""

    ids: list[int]
    finish_reason: str
    logp: list[float]
    """Of each token when it was drawn: log softmax(logits / temperature) over the whole vocabulary (at
    temperature 1 where the draw was greedy)."""


class _Layer(DynamicLayer):
    """Keys and values of one layer in memory laid out once for ``capacity`` tokens."""

    def __init__(self, capacity: int) -> None:
        super().__init__()
        self.capacity = capacity
        self.length = 0

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        self.dtype, self.device = key_states.dtype, key_states.device
        batch, heads, _, width = key_states.shape
        self.keys = key_states.new_empty(batch, heads, self.capacity, width)
        self.values = value_states.new_empty(batch, heads, self.capacity, value_states.shape[-1])
        self.is_initialized = True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        assert self.keys is not None and self.values is not None
        end = self.length + key_states.shape[2]
        self.keys[:, :, self.length : end] = key_states
        self.values[:, :, self.length : end] = value_states
        self.length = end
        return self.keys[:, :, :end], self.values[:, :, :end]

    def get_seq_length(self) -> int:
        return self.length

    def keep(self, rows_B: torch.Tensor) -> None:
        """Only these sequences go on."""
        assert self.keys is not None and self.values is not None
        self.keys, self.values = self.keys[rows_B], self.values[rows_B]


def can_sample(model: PreTrainedModel) -> bool:
    """Whether every layer of ``model`` attends to the whole sequence, as this sampler needs."""
    text = model.config.get_text_config()
    kinds = getattr(text, "layer_types", None) or ["full_attention"]
    return all(kind == "full_attention" for kind in kinds) and not getattr(text, "use_sliding_window", False)


@torch.inference_mode()
def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    settings: Sequence[Sampling],
    *,
    ends: set[int],
    on_token: Callable[[int], None] | None = None,
) -> list[Sampled]:
    """Continues every prompt until an end token or its ``max_tokens``.

    Args:
        prompts: token ids, none empty.
        settings: temperature (0 is greedy), top_p, top_k, max_tokens and seed of each prompt. Stop strings
            are the caller's: this function knows no text.
        ends: ids that end an answer.
        on_token: called after each step with the number of tokens just drawn.
    """
    if not prompts:
        return []
    ids_BT, mask_BT = _left_padded(prompts, model.device)
    longest = max(setting.max_tokens for setting in settings)
    text = model.config.get_text_config()
    cache = Cache(layers=[_Layer(ids_BT.shape[1] + longest) for _ in range(text.num_hidden_layers)])
    uniforms = [np.random.Generator(np.random.Philox(key=setting.seed or 0)) for setting in settings]
    answers: list[list[int]] = [[] for _ in prompts]
    logps: list[list[float]] = [[] for _ in prompts]
    reasons = ["length"] * len(prompts)
    running = list(range(len(prompts)))
    inputs, positions = ids_BT, (mask_BT.cumsum(1) - 1).clamp(min=0)
    ended = torch.zeros(len(prompts), dtype=torch.bool)
    while True:
        logits_BV = model(
            inputs,
            attention_mask=mask_BT,
            position_ids=positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        ).logits[:, -1]
        draws = [uniforms[row].random() for row in running]
        tokens_B = draw(
            logits_BV, [settings[row] for row in running], torch.tensor(draws, dtype=torch.float64)
        )
        heat_B1 = torch.tensor([[settings[row].temperature or 1.0] for row in running])
        logp_BV = (logits_BV.float() / heat_B1.to(logits_BV.device)).log_softmax(-1)
        logp_B = logp_BV.gather(1, tokens_B[:, None])[:, 0].tolist()
        fresh = 0
        for place, (row, token) in enumerate(zip(running, tokens_B.tolist(), strict=True)):
            if ended[place]:
                continue
            fresh += 1
            answers[row].append(token)
            logps[row].append(logp_B[place])
            if token in ends:
                reasons[row] = "stop"
            ended[place] = token in ends or len(answers[row]) >= settings[row].max_tokens
        if on_token:
            on_token(fresh)
        alive = int((~ended).sum())
        if not alive:
            break
        if alive < SHRINK_AT * len(running):
            keep = (~ended).nonzero().flatten()
            for layer in cache.layers:
                layer.keep(keep)  # type: ignore[attr-defined]
            running = [running[place] for place in keep.tolist()]
            tokens_B, mask_BT, ended = tokens_B[keep], mask_BT[keep], ended[keep]
            positions = positions[keep]
        inputs = tokens_B[:, None]
        positions = positions[:, -1:] + 1
        mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(running), 1)], dim=1)
    return [Sampled(*answer) for answer in zip(answers, reasons, logps, strict=True)]


def draw(logits_BV: torch.Tensor, settings: Sequence[Sampling], uniforms_B: torch.Tensor) -> torch.Tensor:
    """The next token of each sequence [B]: the likeliest, or by inverse transform from one uniform number.

    top-k keeps the k likeliest tokens; top-p then keeps the smallest set of the likeliest whose probability
    (after top-k) reaches p (Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration").
    """
    tokens_B = logits_BV.argmax(-1)
    sampled = [place for place, setting in enumerate(settings) if setting.temperature > 0]
    if not sampled:
        return tokens_B
    rows = torch.tensor(sampled)
    heat = torch.tensor([settings[place].temperature for place in sampled])[:, None]
    probabilities_BV = torch.softmax(logits_BV[rows].float() / heat, dim=-1)
    for place, row in enumerate(sampled):
        if settings[row].top_k or settings[row].top_p < 1:
            probabilities_BV[place] = _truncated(
                probabilities_BV[place], settings[row].top_k, settings[row].top_p
            )
    cumulative_BV = probabilities_BV.double().cumsum(-1)
    threshold_B1 = uniforms_B[rows, None] * cumulative_BV[:, -1:]
    tokens_B[rows] = torch.searchsorted(cumulative_BV, threshold_B1, right=True).squeeze(-1)
    return tokens_B


def _truncated(probabilities_V: torch.Tensor, top_k: int, top_p: float) -> torch.Tensor:
    """``probabilities_V`` with zeros outside top-k and the nucleus; not normalised again."""
    size = probabilities_V.numel()
    count = min(top_k or NUCLEUS_FIRST, size)
    likeliest, places = probabilities_V.topk(count)
    if not top_k and likeliest.sum() < top_p:
        likeliest, places = probabilities_V.sort(descending=True)
    before = likeliest.double().cumsum(0) - likeliest
    total = likeliest.double().sum() if top_k else 1.0
    kept = before < top_p * total
    kept[0] = True
    out = torch.zeros_like(probabilities_V)
    out[places[kept]] = likeliest[kept]
    return out


def _left_padded(prompts: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and attention mask [B, T], the prompts flush right."""
    length = max(map(len, prompts))
    ids_BT = torch.zeros(len(prompts), length, dtype=torch.long, device=device)
    mask_BT = torch.zeros_like(ids_BT)
    for row, prompt in enumerate(prompts):
        ids_BT[row, length - len(prompt) :] = torch.tensor(prompt, device=device)
        mask_BT[row, length - len(prompt) :] = 1
    return ids_BT, mask_BT
