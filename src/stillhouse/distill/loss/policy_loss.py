"""The policy loss: advantages of a group, weights of tokens, and the clipped surrogate with its gradient.

Pure functions. Rewards come from a verifier and log-probabilities from the caller; nothing here samples or
trains. Only :func:`policy_gradient` touches the vocabulary, one tile at a time.

Shapes: G groups (prompts), S samples of each, N tokens, n tokens of a tile, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from stillhouse.recipe.on_policy import Policy

STD_EPSILON = 1e-4
"""Added to a group's standard deviation, so that nearly equal rewards do not become large advantages."""

MAX_LOG_RATIO = 20.0
"""Log-ratios are clamped to this, far beyond any clipping, so that no ratio is infinite."""


def group_advantages(rewards_GS: Tensor, normalise: str) -> Tensor:
    """The advantage of each sample over its group, [G, S].

    ``none``: A = r − mean(r) (Liu et al. 2025, Dr. GRPO, arXiv:2503.20783, section 3.2).
    ``std``: A = (r − mean(r)) / std(r) (Shao et al. 2024, GRPO, arXiv:2402.03300, section 4.1.2), with the
    standard deviation of the group as a whole population; groups of equal rewards get 0.
    """
    centred_GS = rewards_GS - rewards_GS.mean(dim=1, keepdim=True)
    if normalise == "none":
        return centred_GS
    std_G1 = centred_GS.square().mean(dim=1, keepdim=True).sqrt()
    return torch.where(std_G1 > 0, centred_GS / (std_G1 + STD_EPSILON), torch.zeros_like(centred_GS))


def has_signal(rewards_GS: Tensor) -> Tensor:
    """Which groups have rewards that differ, bool [G]; the others have no gradient (DAPO, section 3.2)."""
    return rewards_GS.amax(dim=1) > rewards_GS.amin(dim=1)


def overlong_penalty(lengths: Sequence[int], max_tokens: int, buffer: int) -> Tensor:
    """Soft overlong punishment (Yu et al. 2025, DAPO, arXiv:2503.14476, equation 13), in [−1, 0].

    0 up to ``max_tokens − buffer`` tokens, then falling linearly to −1 at ``max_tokens``.
    """
    over = torch.tensor(lengths, dtype=torch.float32) - (max_tokens - buffer)
    return -(over / buffer).clamp(0, 1) if buffer else torch.zeros(len(lengths))


def token_weights(lengths: Sequence[int], aggregate: str, max_tokens: int, share: float = 1.0) -> list[float]:
    """The weight of each sample's tokens, so that the loss is the weighted sum over tokens.

    ``sequence``: 1 / (samples · length), the mean over each sample's tokens first (GRPO, equation 3).
    ``token``: 1 / (all tokens) (DAPO, equation 8). ``constant``: 1 / (samples · ``max_tokens``), so that the
    length of a sample does not change the weight of its tokens (Dr. GRPO, section 3.2).

    Args:
        share: of all answers that these are; the others have advantage 0 and were left out. A mean over
            answers counts them, the mean over tokens does not (DAPO has no such answers).
    """
    samples, total = len(lengths) / share, sum(lengths)
    if aggregate == "sequence":
        return [1.0 / (samples * length) for length in lengths]
    if aggregate == "token":
        return [1.0 / total] * len(lengths)
    return [1.0 / (samples * max_tokens)] * len(lengths)


@dataclass(frozen=True, eq=False)
class PolicyRows:
    """Inputs of the policy loss for each token, and the metrics that it records.

    Args:
        settings: clipping, weights of the KL and of the entropy.
        temperature: of the sampling; log-probabilities are those of softmax(logits / temperature).
        weight: factor of the policy loss beside the teacher's divergence.
        old_logp_N: of the token when it was sampled.
        advantages_N: of the token's sample.
        reference_logp_N: of the token under the initial student; None without a reference.
    """

    settings: Policy
    temperature: float
    weight: float
    old_logp_N: Tensor
    advantages_N: Tensor
    reference_logp_N: Tensor | None = None
    measured: dict[str, list[Tensor]] = field(default_factory=dict)
    """Tensors [n] of each tile: ``entropy``, ``clipped``, ``old_kl``, ``reference_kl`` and ``teacher``."""

    def record(self, **values_n: Tensor) -> None:
        """Appends the values of a tile to :attr:`measured`."""
        for name, value_n in values_n.items():
            self.measured.setdefault(name, []).append(value_n)


def surrogate(
    logp_n: Tensor, old_logp_n: Tensor, advantages_n: Tensor, settings: Policy
) -> tuple[Tensor, Tensor, Tensor]:
    """The clipped loss of each token, its derivative by the log-probability, and whether it is clipped.

    −min(ρA, clip(ρ, 1 − ε_low, 1 + ε_high) A) with ρ = exp(logp − old_logp) (Schulman et al. 2017, PPO,
    arXiv:1707.06347, equation 7; unequal bounds: DAPO, equation 8). Where the clipped term is smaller, the
    loss is constant and its derivative 0; elsewhere the derivative is −ρA.
    """
    ratio_n = (logp_n - old_logp_n).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO).exp()
    bounded_n = ratio_n.clamp(1 - settings.clip_low, 1 + settings.clip_high)
    unclipped_n, clipped_n = ratio_n * advantages_n, bounded_n * advantages_n
    is_clipped_n = clipped_n < unclipped_n
    return -torch.minimum(unclipped_n, clipped_n), torch.where(is_clipped_n, 0.0, -unclipped_n), is_clipped_n


def reference_penalty(logp_n: Tensor, reference_logp_n: Tensor) -> tuple[Tensor, Tensor]:
    """The k3 estimate of KL(student ‖ reference) from sampled tokens, and its derivative by ``logp_n``.

    e^d − d − 1 with d = reference − student: never negative, and unbiased over samples (Schulman 2020,
    "Approximating KL divergence"; GRPO, equation 4).
    """
    # By expm1: near d = 0, where training starts, e^d − 1 would lose its digits.
    difference_n = reference_logp_n - logp_n
    return difference_n.expm1() - difference_n, -difference_n.expm1()


def policy_gradient(
    logits_nV: Tensor, labels_n: Tensor, policy: PolicyRows, rows: slice
) -> tuple[Tensor, Tensor]:
    """The policy loss of a tile, [n], and its derivative by the logits, [n, V].

    With q = softmax(z / T): d log q(label) / dz = (onehot − q) / T, and the entropy H has
    dH / dz = −q (log q + H) / T.

    Args:
        logits_nV: float32 at least; not changed.
    """
    settings = policy.settings
    logq_nV = (logits_nV / policy.temperature).log_softmax(dim=-1)
    q_nV = logq_nV.exp()
    logp_n = logq_nV.gather(1, labels_n[:, None])[:, 0]
    old_n = policy.old_logp_N[rows].to(logp_n)
    loss_n, slope_n, clipped_n = surrogate(logp_n, old_n, policy.advantages_N[rows].to(logp_n), settings)
    entropy_n = -torch.linalg.vecdot(q_nV, logq_nV)
    policy.record(entropy=entropy_n, clipped=clipped_n.float(), old_kl=reference_penalty(logp_n, old_n)[0])
    if policy.reference_logp_N is not None:
        penalty_n, penalty_slope_n = reference_penalty(logp_n, policy.reference_logp_N[rows].to(logp_n))
        policy.record(reference_kl=penalty_n)
        loss_n = loss_n + settings.reference_kl * penalty_n
        slope_n = slope_n + settings.reference_kl * penalty_slope_n
    gradient_nV = q_nV * -slope_n[:, None]
    gradient_nV.scatter_add_(1, labels_n[:, None], slope_n[:, None])
    if settings.entropy:
        loss_n = loss_n - settings.entropy * entropy_n
        gradient_nV += settings.entropy * q_nV * (logq_nV + entropy_n[:, None])
    return policy.weight * loss_n, gradient_nV.mul_(policy.weight / policy.temperature)
