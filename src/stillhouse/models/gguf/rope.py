"""Llama 3's rotary scaling, which GGUF stores as a tensor of divisors."""

from __future__ import annotations

import math


def llama3_rope_factors(
    dim: int, theta: float, *, factor: float, low: float, high: float, original_context: int
) -> list[float]:
    """Divisors [dim / 2] of the rotary frequencies with Llama 3's scaling.

    The formula is Meta's (`apply_scaling` in llama-models).

    Args:
        low, high: `low_freq_factor` and `high_freq_factor`.
    """
    factors = []
    for i in range(dim // 2):
        wavelength = 2 * math.pi * theta ** (2 * i / dim)
        smooth = (original_context / wavelength - low) / (high - low)
        if wavelength < original_context / high:
            factors.append(1.0)
        elif wavelength > original_context / low:
            factors.append(factor)
        else:
            factors.append(1 / ((1 - smooth) / factor + smooth))
    return factors
