"""What both contestants of ``on_policy.py`` share: the task, the reward, and how they measure themselves.

Only the standard library: it is read by two Python environments.
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
"""Steps that are made and not counted."""


def reward(text: str) -> float:
    """The share of the letter e: cheap, and different for almost any two texts."""
    return text.count("e") / max(len(text), 1)


def read_conversations(path: str) -> list[list[dict[str, str]]]:
    """The prompts, in the order in which they are asked."""
    return [json.loads(line)["prompt"] for line in Path(path).read_text(encoding="utf-8").splitlines()]


class Meter:
    """Marks the ends of steps, adds up what was made, and times its parts.

    Counts and parts (sampling, teacher) are those after the warm-up.
    """

    def __init__(self) -> None:
        self.marks: list[tuple[float, float]] = []
        self.counts: dict[str, int] = defaultdict(int)
        self.parts: dict[str, float] = defaultdict(float)

    @property
    def counted(self) -> bool:
        return len(self.marks) >= WARM_UP

    def mark(self) -> None:
        """A step has ended."""
        self.marks.append((time.perf_counter(), time.process_time()))

    def count(self, name: str, number: int) -> None:
        if self.counted:
            self.counts[name] += number

    def timed(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, whose wall seconds are added to the part ``name``."""

        def run(*arguments: Any, **keywords: Any) -> Any:
            started = time.perf_counter()
            result = function(*arguments, **keywords)
            if self.counted:
                self.parts[name] += time.perf_counter() - started
            return result

        return run

    def report(self) -> None:
        """Prints one line of JSON, the last of the process's output."""
        wall, process = (
            end - start for start, end in zip(self.marks[WARM_UP - 1], self.marks[-1], strict=True)
        )
        found = {"wall_s": wall, "process_s": process, "peak_mb": peak_mb()}
        print(json.dumps(found | {"counts": self.counts, "parts_s": self.parts}), flush=True)


def peak_mb() -> float:
    """The largest resident memory of this process so far (Linux)."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found[1]) / 1024
