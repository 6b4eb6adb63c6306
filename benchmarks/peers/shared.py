"""Shared by both workers of ``on_policy.py``: the task, the reward and the measurement.

Only the standard library, because two Python environments import it.
"""

from __future__ import annotations

import json
import re
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

WARM_UP = 1
"""Steps before the measured ones."""


def reward(text: str) -> float:
    """The share of the letter e: cheap to compute, and different for almost any two texts."""
    return text.count("e") / max(len(text), 1)


def read_conversations(path: str) -> list[list[dict[str, str]]]:
    """The prompts, in the order in which they are used."""
    return [json.loads(line)["prompt"] for line in Path(path).read_text(encoding="utf-8").splitlines()]


class Meter:
    """Records the end of each step, counts samples and tokens, and times parts of the steps.

    Counts and parts (sampling, teacher) exclude the warm-up.
    """

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []
        self.counts: dict[str, int] = defaultdict(int)
        self.parts: dict[str, float] = defaultdict(float)

    @property
    def counted(self) -> bool:
        return len(self.marks) >= WARM_UP

    def mark(self) -> None:
        """Records the end of a step."""
        self.marks.append((time.perf_counter(), time.process_time()))

    def count(self, name: str, number: int) -> None:
        if self.counted:
            self.counts[name] += number

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Wraps ``function`` to add its wall seconds to the part ``name``."""

        def run(*arguments: Any, **keywords: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments, **keywords)
            if self.counted:
                self.parts[name] += time.perf_counter() - started
            return result

        return run

    def report(self) -> None:
        """Prints the result as one line of JSON, the last line of the output."""
        wall, process = (
            end - start for start, end in zip(self.marks[WARM_UP - 1], self.marks[-1], strict=True)
        )
        result = {"wall_s": wall, "process_s": process, "peak_mb": peak_mb()}
        print(json.dumps(result | {"counts": self.counts, "parts_s": self.parts}), flush=True)


def peak_mb() -> float:
    """The largest resident memory of this process so far (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    match = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert match is not None
    return int(match[1]) / 1024
