"""Samples the next token of each sequence: temperature, top-k, top-p and min-p, from one uniform number.

Shapes: B sequences, V vocabulary, K likeliest tokens, N blocks of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional as F

from stillhouse.models.types import Marker, Sampling

NUCLEUS_FIRST = 512  # likeliest tokens to search for the nucleus before the whole vocabulary is sorted
BLOCK = 256  # tokens whose probabilities are summed before the search looks at single tokens


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

    At temperature 0 the likeliest token; otherwise inverse transform sampling from one uniform number. top-k
    keeps the k likeliest tokens; top-p then the smallest set of the likeliest whose probability (after top-k)
    reaches p (Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration"); min-p then those with at
    least min_p times the likeliest's probability (Nguyen et al. 2024, "Turning Up the Heat").

    The log-probability is that of the softmax at the temperature (at 1 where that is 0) over the whole
    vocabulary, before any token is left out and before any watermark. Reductions are float32, sums for
    sampling float64.

    Args:
        markers: a watermark or None for each sequence, or an empty sequence. They apply after the settings,
            and not at temperature 0.
        answers: each sequence's ids so far, for its marker.
    """
    temperatures = [setting.temperature or 1.0 for setting in settings]
    scaled_BV = logits_BV.float()
    if any(value != 1.0 for value in temperatures):
        scaled_BV = scaled_BV / torch.tensor(temperatures, device=logits_BV.device)[:, None]
    probabilities_BV = torch.softmax(scaled_BV, dim=-1)
    uniforms_B = uniforms_B.to(logits_BV.device)
    tokens_B = torch.empty(len(settings), dtype=torch.long, device=logits_BV.device)
    # A batch can mix settings. Each group of rows takes the cheapest way to its tokens.
    for rows, method in _rows_by_method(settings, markers):
        group_BV = probabilities_BV if len(rows) == len(settings) else probabilities_BV[rows]
        if method == "greedy":
            tokens_B[rows] = logits_BV[rows].float().argmax(-1)
        elif method == "full":
            tokens_B[rows] = _inverse_transform(group_BV, uniforms_B[rows])
        elif method == "watermarked":
            weights_BV = _watermarked_weights(group_BV, rows, settings, markers, answers)
            tokens_B[rows] = _sample_columns(weights_BV, uniforms_B[rows].cpu()).to(tokens_B.device)
        else:
            tokens_B[rows] = _truncated(group_BV, [settings[row] for row in rows], uniforms_B[rows])
    return tokens_B, probabilities_BV.gather(1, tokens_B[:, None]).squeeze(1).log()


def _rows_by_method(
    settings: Sequence[Sampling], markers: Sequence[Marker | None]
) -> list[tuple[list[int], str]]:
    """Rows grouped by how their tokens are sampled: greedy, watermarked, truncated, or from all tokens."""
    groups: dict[str, list[int]] = {}
    for row, setting in enumerate(settings):
        if setting.temperature == 0:
            method = "greedy"
        elif markers and markers[row] is not None:
            method = "watermarked"
        else:
            method = "truncated" if _truncates(setting) else "full"
        groups.setdefault(method, []).append(row)
    return [(rows, method) for method, rows in groups.items()]


def _truncates(setting: Sampling) -> bool:
    return setting.top_k > 0 or setting.top_p < 1 or setting.min_p > 0


def _watermarked_weights(
    probabilities_BV: torch.Tensor,
    rows: Sequence[int],
    settings: Sequence[Sampling],
    markers: Sequence[Marker | None],
    answers: Sequence[Sequence[int]],
) -> torch.Tensor:
    """Weights [B, V] on the CPU, in float64, after the settings and the watermark of each of ``rows``."""
    weights_BV = np.empty(probabilities_BV.shape)
    probabilities_BV = probabilities_BV.cpu()  # one transfer, not one for each row
    for index, row in enumerate(rows):
        marker = markers[row]
        assert marker is not None
        truncated_V = _truncated_weights(probabilities_BV[index], settings[row])
        weights_BV[index] = marker(answers[row], truncated_V.double().numpy())
    return torch.from_numpy(weights_BV)


def _truncated_weights(probabilities_V: torch.Tensor, setting: Sampling) -> torch.Tensor:
    """The weights [V] of one row, 0 where top-k, top-p or min-p leave a token out."""
    if not _truncates(setting):
        return probabilities_V
    sorted_V, order_V = probabilities_V.sort(descending=True)
    kept_V = _kept(sorted_V[None], [setting])[0]
    return torch.zeros_like(probabilities_V).scatter_(0, order_V, sorted_V * kept_V)


def _inverse_transform(probabilities_BV: torch.Tensor, uniforms_B: torch.Tensor) -> torch.Tensor:
    """Tokens [B] by inverse transform in vocabulary order.

    Finds the block first, then the token in it: a cumulative sum over the whole vocabulary would take longer.
    """
    size = probabilities_BV.shape[1]
    if size % BLOCK:  # F.pad copies even where it pads by nothing
        probabilities_BV = F.pad(probabilities_BV, (0, -size % BLOCK))
    padded_BNK = probabilities_BV.unflatten(1, (-1, BLOCK))
    ends_BN = padded_BNK.sum(-1, dtype=torch.float64).cumsum(-1)
    targets_B1 = uniforms_B[:, None] * ends_BN[:, -1:]
    blocks_B1 = torch.searchsorted(ends_BN, targets_B1, right=True).clamp_(max=ends_BN.shape[1] - 1)
    before_B1 = ends_BN.gather(1, blocks_B1) * 0
    later = blocks_B1 > 0
    before_B1[later] = ends_BN.gather(1, (blocks_B1 - 1).clamp(min=0))[later]
    inside_BK = padded_BNK[torch.arange(len(blocks_B1), device=blocks_B1.device), blocks_B1[:, 0]]
    return blocks_B1[:, 0] * BLOCK + _search_cumulative(inside_BK, (targets_B1 - before_B1))


def _search_cumulative(weights_BK: torch.Tensor, targets_B1: torch.Tensor) -> torch.Tensor:
    """Columns [B] where the running sum passes the target; never a column of weight 0."""
    cumulative_BK = weights_BK.double().cumsum(-1)
    # Rounding can leave the sum just short of the target; the search would then end behind the last token.
    last_positive = weights_BK.shape[1] - 1 - (weights_BK > 0).flip(1).int().argmax(1, keepdim=True)
    columns_B1 = torch.searchsorted(cumulative_BK, targets_B1.contiguous(), right=True)
    return torch.minimum(columns_B1, last_positive).squeeze(1)


def _truncated(
    probabilities_BV: torch.Tensor, settings: Sequence[Sampling], uniforms_B: torch.Tensor
) -> torch.Tensor:
    """Tokens [B] of rows with top-k, top-p or min-p.

    Sorting the vocabulary is slow, and the nucleus is nearly always among the likeliest few. So those are
    tried first, and only rows that keep all of them are sorted whole.
    """
    size = probabilities_BV.shape[1]
    count = min(size, max(NUCLEUS_FIRST, *(setting.top_k for setting in settings)))
    likeliest_BK, ids_BK = probabilities_BV.topk(count)
    kept_BK = _kept(likeliest_BK, settings)
    tokens_B = ids_BK.gather(1, _sample_columns(likeliest_BK * kept_BK, uniforms_B)[:, None]).squeeze(1)
    wide = [r for r, all_kept in enumerate(kept_BK[:, -1].tolist()) if all_kept and not settings[r].top_k]
    if wide and count < size:
        sorted_BV, order_BV = probabilities_BV[wide].sort(descending=True)
        kept_BV = _kept(sorted_BV, [settings[row] for row in wide])
        columns_B = _sample_columns(sorted_BV * kept_BV, uniforms_B[wide])
        tokens_B[wide] = order_BV.gather(1, columns_B[:, None]).squeeze(1)
    return tokens_B


def _sample_columns(weights_BK: torch.Tensor, uniforms_B: torch.Tensor) -> torch.Tensor:
    """Columns [B] sampled in proportion to their weights."""
    return _search_cumulative(weights_BK, uniforms_B[:, None] * weights_BK.double().sum(1, keepdim=True))


def _kept(likeliest_BK: torch.Tensor, settings: Sequence[Sampling]) -> torch.Tensor:
    """Which probabilities, in descending order, top-k, top-p and min-p keep; always the first."""

    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=likeliest_BK.device)[:, None]

    ranks_K = torch.arange(likeliest_BK.shape[1], device=likeliest_BK.device)
    top_k = column([setting.top_k or likeliest_BK.shape[1] for setting in settings])
    top_p = column([setting.top_p for setting in settings])
    has_k = column([float(setting.top_k > 0) for setting in settings])
    weights_BK = likeliest_BK.double() * (ranks_K < top_k)
    # Without top-k, p is a share of the whole vocabulary, and these columns can be only some of it.
    total_B1 = torch.where(has_k > 0, weights_BK.sum(1, keepdim=True), 1.0)
    before_BK = weights_BK.cumsum(1) - weights_BK
    # A token stays if those before it do not reach p. Rounding can put the last ones past 1, so 1 keeps all.
    kept_BK = (ranks_K < top_k) & ((before_BK < top_p * total_B1) | (top_p >= 1))
    kept_BK &= weights_BK >= column([setting.min_p for setting in settings]) * weights_BK[:, :1]
    kept_BK[:, 0] = True
    return kept_BK
