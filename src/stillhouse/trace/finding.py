"""`Finding`, the result of one test, and the interface of `judge`, which computes it.

Each detector has two independent functions. `observe` queries models and returns a transcript, one Arrow
table. `judge` is arithmetic on that table: no model, no file, no clock, and every random number from a seed
in its parameters. So the bundle alone is enough to judge again, and the models are enough to observe again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

Level = Literal["L0", "L1", "L2", "exhibit", "weights"]
"""What a test can show. L0: the suspect sounds like the teacher. L1: it was exposed to the teacher's outputs,
by any route. L2: it was trained on outputs delivered to these accounts. `exhibit`: nothing by itself.
`weights`: it is a fine-tune of the teacher's own weights, which is not training on its outputs."""


@dataclass(frozen=True)
class Assumption:
    """A condition under which the null distribution is the stated one."""

    text: str
    held: bool | None
    """Whether it holds in the data; None if the data cannot show it."""
    evidence: str = ""
    """The measurement behind ``held``."""


@dataclass(frozen=True)
class Finding:
    """The result of one test. If it did not run, ``reason`` says why."""

    test: str
    level: Level
    null: str
    """The exact null hypothesis and the source of its distribution, in one or two sentences."""
    n: int
    """Number of independent units."""
    statistic: str = ""
    """Description of ``value``."""
    value: float | None = None
    p_value: float | None = None
    """One-sided; not smaller than the method can support."""
    e_value: float | None = None
    """Evidence whose expectation under the null is at most 1; it can be merged and monitored."""
    effect: Mapping[str, float | None] = field(default_factory=dict)
    """Effect sizes in natural units; `NAME_low` and `NAME_high` are the ends of an interval."""
    assumptions: tuple[Assumption, ...] = ()
    rivals: tuple[str, ...] = ()
    """Other explanations than the accusation that remain if the null is false."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """The parameters that `judge` was called with."""
    series: Mapping[str, list[float]] = field(default_factory=dict)
    """Values that the report plots, by name; at most a few hundred each."""
    reason: str | None = None
    """Why the test could not run, and what it needs."""

    @property
    def ran(self) -> bool:
        """Whether the test ran."""
        return self.reason is None


Judge = Callable[[pa.Table, Mapping[str, Any]], Finding]
"""Computes a finding from a transcript and parameters; pure."""
