"""Formatting of numbers for pages and the terminal: figures, intervals, bytes, counts, durations, dollars."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

_SUPERSCRIPTS = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")


def format_number(value: float | None, digits: int = 3) -> str:
    """``0.712``, ``12.3``, ``880``, ``12,300``: ``digits`` significant digits, an exponent from 10⁶ up."""
    if value is None:
        return "–"
    if not math.isfinite(value):
        return "∞" if value > 0 else "–"
    if value == 0:
        return "0"
    if abs(value) >= 1e6:
        return f"{value:.{digits - 1}e}"
    rounded = float(f"{value:.{digits - 1}e}")
    decimals = max(0, digits - 1 - math.floor(math.log10(abs(rounded))))
    return f"{rounded:,.{min(decimals, 6)}f}".replace("-", "−")


def format_scientific(value: float | None) -> str:
    """``12,300``, ``0.0123``, ``2.6 × 10⁻²⁴``: a power of ten below 10⁻⁴ and from 10⁷ on; None is a dash."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    if not 1e-4 <= abs(value) < 1e7:
        digits, _, exponent = f"{value:.1e}".partition("e")
        power = f"10{str(int(exponent)).translate(_SUPERSCRIPTS)}"
        is_power = digits == "1.0" and math.isclose(value, 10.0 ** int(exponent))
        return power if is_power else f"{digits} × {power}".replace("-", "−")
    if abs(value) >= 100:
        return f"{value:,.0f}".replace("-", "−")
    return f"{float(f'{value:.3g}'):.10g}".replace("-", "−")


def format_percent(share: float) -> str:
    """``5%``, ``0.3%``: three significant digits."""
    return f"{100 * share:.3g}%"


def decimals_for(estimate: Mapping[str, Any], scale: float = 1.0) -> int:
    """Number of decimals (0 to 4) that shows the interval's half width with two digits."""
    if estimate["low"] is None or estimate["high"] is None or not math.isfinite(estimate["high"]):
        return 2
    half = (estimate["high"] - estimate["low"]) / 2 * scale
    return 2 if half <= 0 else min(4, max(0, 1 - math.floor(math.log10(half))))


def format_interval(
    estimate: Mapping[str, Any], *, scale: float = 1.0, signed: bool = False
) -> tuple[str, str]:
    """A value and its interval as two texts; the interval's width decides the number of decimals.

    A value beyond the largest float (null in a report read from disk) is ``∞``.

    Args:
        scale: factor before formatting; 100 for per cent.
        signed: whether positive numbers get a plus sign, for differences.
    """
    decimals = decimals_for(estimate, scale)

    def text(value: float | None) -> str:
        if value is None or not math.isfinite(value):
            return "∞"
        return f"{value * scale:{'+' if signed else ''},.{decimals}f}".replace("-", "−")

    if estimate["low"] is None:
        return text(estimate["value"]), "no interval"
    return text(estimate["value"]), f"{text(estimate['low'])} to {text(estimate['high'])}"


def format_bytes(count: int) -> str:
    """Bytes in powers of ten: ``98 MB``, ``1.3 GB``."""
    value, unit = float(count), "B"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if value < 999.5 or unit == "TB":
            break
        value /= 1000
    return f"{value:.0f} {unit}" if value >= 99.5 or unit == "B" else f"{value:.3g} {unit}"


def format_count(value: float) -> str:
    """A count, such as a number of parameters, with three digits: ``135 M``, ``1.24 B``, ``900``."""
    for unit, power in (("B", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= power * 0.9995:
            scaled = value / power
            return f"{scaled:.0f} {unit}" if scaled >= 99.5 else f"{scaled:.3g} {unit}"
    return f"{value:g}"


def format_duration(seconds: float, decimals: int = 0) -> str:
    """``8 s``, ``3 min 20 s`` or ``2 h 05 min``; ``decimals`` apply below one minute."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{max(0.0, seconds):.{decimals}f} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def format_dollars(dollars: float) -> str:
    """``$12.34``, ``$0.034``, ``$0.00012``: two significant digits at least, so no price reads as zero."""
    if dollars <= 0 or dollars >= 0.1:
        return f"${dollars:,.2f}"
    decimals = 1 - math.floor(math.log10(dollars))
    return f"${dollars:.{decimals}f}" if decimals <= 8 else f"${dollars:.1e}"
