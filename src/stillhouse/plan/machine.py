"""Measures this machine's rates of matrix products and copying, in about a second."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from stillhouse.plan.cost_formulas import Machine


def measure_machine(device: str = "cpu", seconds: float = 0.3) -> Machine:
    """Times matrix products of 1,024 × 1,024 in both types and a copy of 64 MB, each for ``seconds``."""
    import torch

    from stillhouse.distill.forward.precision import compute_dtype

    torch_device = torch.device(device)

    def fastest(work: Callable[[], Any]) -> float:
        times: list[float] = []
        work()  # warm-up: the first call builds kernels and allocates memory
        while len(times) < 3 or sum(times) < seconds:
            before = time.perf_counter()
            work()
            if torch_device.type == "cuda":
                torch.cuda.synchronize(torch_device)
            times.append(time.perf_counter() - before)
        return min(times)  # the fastest: other load on the machine only adds time

    rates = []
    for dtype in (torch.float32, torch.bfloat16):
        matrix = torch.randn(1024, 1024).to(torch_device, dtype)
        rates.append(2 * 1024**3 / fastest(lambda m=matrix: m @ m))
    source, target = torch.zeros(2**24, device=torch_device), torch.empty(2**24, device=torch_device)
    bytes_per_s = 2 * source.nbytes / fastest(lambda: target.copy_(source))
    return Machine(rates[0], rates[1], bytes_per_s, compute_dtype("auto", torch_device) == torch.bfloat16)
