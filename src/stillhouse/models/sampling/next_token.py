"""The next token of each sequence: temperature, top-k, top-p and min-p, and one uniform number.

Shapes: B sequences, V vocabulary, K likeliest tokens, N blocks of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from stillhouse.models.types import Sampling

NUCLEUS_FIRST = 512  # likeliest tokens that are tried for the nucleus before the whole vocabulary is sorted
BLOCK = 256  # tokens whose probabilities are summed before a draw looks at single ones

Marker = Callable[[Sequence[int], np.ndarray], np.ndarray]
"""Changes what the next token of one answer is drawn from: takes the answer's ids so far and the weights [V]
(float64, of any sum) that its settings leave, gives weights back. See :class:`stillhouse.watermark.Mark`."""


def draw(logits_BV: torch.Tensor, settings: Sequence[Sampling], uniforms_B: torch.Tensor) -> torch.Tensor:
    """The next token of each sequence [B]; see :func:`draw_with_logp`."""
    return draw_with_logp(logits_BV, settings, uniforms_B)[0]


def draw_with_logp(
    logits_BV: torch.Tensor,
    settings: Sequence[Sampling],
    uniforms_B: torch.Tensor,
    markers: Sequence[Marker | None] = (),
    answers: Sequence[Sequence[int]] = (),
) -> tuple[torch.Tensor, torch.Tensor]:
    """The next token of each sequence and its log-probability in nats, both [B].

    The likeliest token at temperature 0; else by inverse transform from one uniform number. top-k keeps the
    k likeliest tokens; top-p then the smallest set of the likeliest whose probability (after top-k) reaches p
    (Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration"); min-p then those of at least
    min_p times the likeliest's probability (Nguyen et al. 2024, "Turning Up the Heat").

    The log-probability is that of the softmax at the temperature (at 1 where that is 0) over the whole
    vocabulary, before any token is left out, and before any mark. Reductions are float32, sums for the draw
    float64.

    Args:
        markers: of each sequence, or none at all; they come after the settings, and not at temperature 0.
        answers: ids so far of each sequence, for its marker.
    """
    heat = [setting.temperature or 1.0 for setting in settings]
    scaled_BV = logits_BV.float()
    if any(value != 1.0 for value in heat):
        scaled_BV = scaled_BV / torch.tensor(heat, device=logits_BV.device)[:, None]
    probabilities_BV = torch.softmax(scaled_BV, dim=-1)
    uniforms_B = uniforms_B.to(logits_BV.device)
    tokens_B = torch.empty(len(settings), dtype=torch.long, device=logits_BV.device)
    for rows, pick in _kinds(settings, markers):
        part_BV = probabilities_BV if len(rows) == len(settings) else probabilities_BV[rows]
        if pick == "greedy":
            tokens_B[rows] = logits_BV[rows].float().argmax(-1)
        elif pick == "whole":
            tokens_B[rows] = _inverse(part_BV, uniforms_B[rows])
        elif pick == "marked":
            weights_BV, part_BV = np.empty(part_BV.shape), part_BV.cpu()  # once, not row by row
            for place, row in enumerate(rows):
                marker = markers[row]
                assert marker is not None
                left_V = _left(part_BV[place], settings[row])
                weights_BV[place] = marker(answers[row], left_V.double().numpy())
            picked = _pick(torch.from_numpy(weights_BV), uniforms_B[rows].cpu())
            tokens_B[rows] = picked.to(tokens_B.device)
        else:
            tokens_B[rows] = _truncated_draw(part_BV, [settings[row] for row in rows], uniforms_B[rows])
    return tokens_B, probabilities_BV.gather(1, tokens_B[:, None]).squeeze(1).log()


def _kinds(settings: Sequence[Sampling], markers: Sequence[Marker | None]) -> list[tuple[list[int], str]]:
    """The rows that are greedy, marked, drawn from some tokens, and drawn from all."""
    kinds: dict[str, list[int]] = {}
    for row, setting in enumerate(settings):
        if setting.temperature == 0:
            kind = "greedy"
        elif markers and markers[row] is not None:
            kind = "marked"
        else:
            kind = "some" if _leaves_out(setting) else "whole"
        kinds.setdefault(kind, []).append(row)
    return [(rows, kind) for kind, rows in kinds.items()]


def _leaves_out(setting: Sampling) -> bool:
    return setting.top_k > 0 or setting.top_p < 1 or setting.min_p > 0


def _left(probabilities_V: torch.Tensor, setting: Sampling) -> torch.Tensor:
    """The weights [V] of one row, 0 where top-k, top-p or min-p leave a token out."""
    if not _leaves_out(setting):
        return probabilities_V
    sorted_V, order_V = probabilities_V.sort(descending=True)
    kept_V = _kept(sorted_V[None], [setting])[0]
    return torch.zeros_like(probabilities_V).scatter_(0, order_V, sorted_V * kept_V)


def _inverse(probabilities_BV: torch.Tensor, uniforms_B: torch.Tensor) -> torch.Tensor:
    """Inverse transform in vocabulary order: the block first, then the token in it."""
    size = probabilities_BV.shape[1]
    if size % BLOCK:  # padding by nothing copies all the same
        probabilities_BV = F.pad(probabilities_BV, (0, -size % BLOCK))
    padded_BNK = probabilities_BV.unflatten(1, (-1, BLOCK))
    ends_BN = padded_BNK.sum(-1, dtype=torch.float64).cumsum(-1)
    targets_B1 = uniforms_B[:, None] * ends_BN[:, -1:]
    blocks_B1 = torch.searchsorted(ends_BN, targets_B1, right=True).clamp_(max=ends_BN.shape[1] - 1)
    before_B1 = ends_BN.gather(1, blocks_B1) * 0
    later = blocks_B1 > 0
    before_B1[later] = ends_BN.gather(1, (blocks_B1 - 1).clamp(min=0))[later]
    inside_BK = padded_BNK[torch.arange(len(blocks_B1), device=blocks_B1.device), blocks_B1[:, 0]]
    return blocks_B1[:, 0] * BLOCK + _from_cumulative(inside_BK, (targets_B1 - before_B1))


def _from_cumulative(weights_BK: torch.Tensor, targets_B1: torch.Tensor) -> torch.Tensor:
    """Places [B] where the running sum passes the target; never one of weight 0."""
    cumulative_BK = weights_BK.double().cumsum(-1)
    highest = weights_BK.shape[1] - 1 - (weights_BK > 0).flip(1).int().argmax(1, keepdim=True)
    places_B1 = torch.searchsorted(cumulative_BK, targets_B1.contiguous(), right=True)
    return torch.minimum(places_B1, highest).squeeze(1)


def _truncated_draw(
    probabilities_BV: torch.Tensor, settings: Sequence[Sampling], uniforms_B: torch.Tensor
) -> torch.Tensor:
    """Tokens [B] of rows that leave some out: from the likeliest few where they hold all that may be."""
    size = probabilities_BV.shape[1]
    count = min(size, max(NUCLEUS_FIRST, *(setting.top_k for setting in settings)))
    likeliest_BK, places_BK = probabilities_BV.topk(count)
    kept_BK = _kept(likeliest_BK, settings)
    tokens_B = places_BK.gather(1, _pick(likeliest_BK * kept_BK, uniforms_B)[:, None]).squeeze(1)
    wide = [r for r, all_kept in enumerate(kept_BK[:, -1].tolist()) if all_kept and not settings[r].top_k]
    if wide and count < size:
        sorted_BV, order_BV = probabilities_BV[wide].sort(descending=True)
        kept_BV = _kept(sorted_BV, [settings[row] for row in wide])
        picked = _pick(sorted_BV * kept_BV, uniforms_B[wide])
        tokens_B[wide] = order_BV.gather(1, picked[:, None]).squeeze(1)
    return tokens_B


def _pick(weights_BK: torch.Tensor, uniforms_B: torch.Tensor) -> torch.Tensor:
    return _from_cumulative(weights_BK, uniforms_B[:, None] * weights_BK.double().sum(1, keepdim=True))


def _kept(likeliest_BK: torch.Tensor, settings: Sequence[Sampling]) -> torch.Tensor:
    """Which of probabilities in falling order may be drawn; the first always."""

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=likeliest_BK.device)[:, None]

    ranks_K = torch.arange(likeliest_BK.shape[1], device=likeliest_BK.device)
    top_k = column([setting.top_k or likeliest_BK.shape[1] for setting in settings])
    top_p = column([setting.top_p for setting in settings])
    has_k = column([float(setting.top_k > 0) for setting in settings])
    weights_BK = likeliest_BK.double() * (ranks_K < top_k)
    total_B1 = torch.where(has_k > 0, weights_BK.sum(1, keepdim=True), 1.0)
    before_BK = weights_BK.cumsum(1) - weights_BK
    kept_BK = (ranks_K < top_k) & ((before_BK < top_p * total_B1) | (top_p >= 1))
    kept_BK &= weights_BK >= column([setting.min_p for setting in settings]) * weights_BK[:, :1]
    kept_BK[:, 0] = True
    return kept_BK
