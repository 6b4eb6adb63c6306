"""Detects whether the CPU has bfloat16 instructions."""

from __future__ import annotations

from functools import cache
from pathlib import Path


@cache
def cpu_has_bfloat16() -> bool:
    """Whether this x86 processor has bfloat16 dot products (detected on Linux only; elsewhere False)."""
    try:
        flags = Path("/proc/cpuinfo").read_text().split()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
