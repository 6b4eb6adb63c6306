"""Formatting of numbers for pages and the terminal: figures, intervals, bytes, counts, durations, dollars."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
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


def decimals_for(estimate: Mapping[str, Any], scale: float = 1.0, most: int = 4) -> int:
    """Number of decimals (0 to ``most``) that shows the interval's half width with two digits."""
    if estimate["low"] is None or estimate["high"] is None or not math.isfinite(estimate["high"]):
        return 2
    half = (estimate["high"] - estimate["low"]) / 2 * scale
    return 2 if half <= 0 else min(most, max(0, 1 - math.floor(math.log10(half))))


def column_decimals(estimates: Iterable[Mapping[str, Any] | None], scale: float = 1.0) -> int:
    """Number of decimals for a whole column of estimates: that of the one with the narrowest interval.

    A column with very large numbers gets fewer, but at least two.
    """
    measured = [estimate for estimate in estimates if estimate is not None]
    values = [e["value"] * scale for e in measured if e["value"] is not None and math.isfinite(e["value"])]
    wanted = max((decimals_for(estimate, scale) for estimate in measured), default=2)
    digits = len(str(int(max(map(abs, values), default=0))))
    return min(wanted, max(2, 7 - digits))


def format_interval(
    estimate: Mapping[str, Any], *, scale: float = 1.0, signed: bool = False, decimals: int | None = None
) -> tuple[str, str]:
    """A value and its interval as two texts.

    A value beyond the largest float (null in a report read from disk) is ``∞``.

    Args:
        scale: factor before formatting; 100 for per cent.
        signed: whether positive numbers get a plus sign, for differences.
        decimals: by default the interval's width decides; see :func:`column_decimals` for a column.
    """
    decimals = decimals_for(estimate, scale) if decimals is None else decimals

    def text(value: float | None) -> str:
        if value is None or not math.isfinite(value):
            return "∞"
        if abs(value * scale) >= 1e7:
            return f"{value * scale:{'+' if signed else ''}.1e}"
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


def format_column(values: Sequence[float | None], *, unit: str = "") -> list[str]:
    """A column of positive numbers in one unit with one number of decimals: ``98.6 MB``, ``325.0 MB``.

    The smallest number gets three digits, or fewer beside one that is more than a thousand times larger.

    Args:
        unit: ``B`` for bytes (``kB``, ``MB``, …), ``count`` for counts (``k``, ``M``, ``B``), else a plain
            number.
    """
    present = [value for value in values if value is not None and value > 0 and math.isfinite(value)]
    if not present:
        return ["–" if value is None else f"{value:g}" for value in values]
    prefixes = {"B": ("TB", "GB", "MB", "kB", "B"), "count": ("T", "B", "M", "k", "")}.get(unit, ("",))
    powers = [10.0 ** (3 * (len(prefixes) - 1 - i)) for i in range(len(prefixes))]
    smallest, largest = min(present), max(present)
    basis = smallest if largest / smallest < 1000 else largest
    power, prefix = next(
        ((p, name) for p, name in zip(powers, prefixes, strict=True) if basis >= 0.9995 * p),
        (powers[-1], prefixes[-1]),
    )
    decimals = min(2, max(0, 2 - math.floor(math.log10(smallest / power))))
    decimals = 0 if prefix == "B" and unit == "B" else decimals
    return [
        "–" if value is None else f"{value / power:,.{decimals}f}{' ' if prefix else ''}{prefix}"
        for value in values
    ]


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
