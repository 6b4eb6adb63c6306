"""Divergences the slow, obvious way: float64, one id after another, scipy's relative entropy."""

from __future__ import annotations

import math
from collections.abc import Sequence

from scipy.special import rel_entr

from stillhouse.recipe import Objective

KINDS = ("forward_kl", "reverse_kl", "jsd", "skew_forward_kl", "skew_reverse_kl")


def probabilities(logits: Sequence[float], temperature: float = 1.0) -> list[float]:
    """Softmax of logits / temperature."""
    highest = max(logits)
    weights = [math.exp((x - highest) / temperature) for x in logits]
    total = math.fsum(weights)
    return [w / total for w in weights]


def kl(a: Sequence[float], b: Sequence[float]) -> float:
    """KL(a‖b) in nats."""
    return math.fsum(float(rel_entr(x, y)) for x, y in zip(a, b, strict=True))


def mixture(share: float, a: Sequence[float], b: Sequence[float]) -> list[float]:
    """share · a + (1 − share) · b."""
    return [share * x + (1 - share) * y for x, y in zip(a, b, strict=True)]


def between(p: Sequence[float], q: Sequence[float], objective: Objective) -> float:
    """The objective's divergence between a teacher p and a student q."""
    alpha, beta = objective.alpha, objective.beta
    if objective.kind == "forward_kl" or (objective.kind == "jsd" and beta == 0):
        return kl(p, q)
    if objective.kind == "reverse_kl" or (objective.kind == "jsd" and beta == 1):
        return kl(q, p)
    if objective.kind == "jsd":
        middle = mixture(beta, p, q)
        return beta * kl(p, middle) + (1 - beta) * kl(q, middle)
    if objective.kind == "skew_forward_kl":
        return kl(p, mixture(alpha, p, q))
    assert objective.kind == "skew_reverse_kl"
    return kl(q, mixture(alpha, q, p))


def divergence(student: Sequence[float], teacher: Sequence[float], objective: Objective) -> float:
    """From logits, with the temperature on both sides and T² in front."""
    t = objective.temperature
    return t**2 * between(probabilities(teacher, t), probabilities(student, t), objective)


def cross_entropy(student: Sequence[float], label: int) -> float:
    """−log q(label)."""
    return -math.log(probabilities(student)[label])


def merged(p: Sequence[float], listed: Sequence[int]) -> list[float]:
    """The probabilities of the listed ids, then that of all the others together."""
    return [p[i] for i in listed] + [math.fsum(x for i, x in enumerate(p) if i not in listed)]


def central_differences(function, at: Sequence[float], step: float = 1e-5) -> list[float]:
    """The derivative of ``function`` by each entry of ``at``."""
    slopes = []
    for i in range(len(at)):
        up, down = list(at), list(at)
        up[i] += step
        down[i] -= step
        slopes.append((function(up) - function(down)) / (2 * step))
    return slopes
