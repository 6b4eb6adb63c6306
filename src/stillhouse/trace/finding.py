"""What a test of the trace room reports, and what it is made of.

Every test is two functions that know nothing of each other. `observe` asks models and writes down what they
answered: a transcript, one Arrow table. `judge` is arithmetic on that table: no model, no file, no clock, and
every random number from a seed in its parameters. So whoever has the bundle can judge again without a model,
and whoever has the models can observe again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa

Level = Literal["L0", "L1", "L2", "exhibit", "weights"]
"""How much a test can show: L0 sounds like the teacher; L1 exposed to the teacher's outputs by any route; L2
trained on outputs delivered to these accounts; an exhibit shows nothing by itself; weights are about being a
fine-tune of the teacher's own weights, which training on its outputs is not."""


@dataclass(frozen=True)
class Assumption:
    """One thing that has to hold for the null distribution to be the stated one."""

    text: str
    held: bool | None
    """Whether the data bear it out; None where nothing in the data can tell."""
    evidence: str = ""
    """What was looked at, with its figure."""


@dataclass(frozen=True)
class Finding:
    """One test's result. Without a p-value the test did not run, and ``reason`` says why."""

    test: str
    level: Level
    null: str
    """The exact null hypothesis and where its distribution comes from, in one or two sentences."""
    n: int
    """Independent units that were counted."""
    statistic: str = ""
    """What ``value`` is, in words."""
    value: float | None = None
    p_value: float | None = None
    """One-sided; never below what the method can show."""
    e_value: float | None = None
    """Expectation at most 1 under the null; evidence that may be merged and monitored."""
    effect: Mapping[str, float | None] = field(default_factory=dict)
    """Sizes in natural units, with `NAME_low` and `NAME_high` where there is an interval."""
    assumptions: tuple[Assumption, ...] = ()
    rivals: tuple[str, ...] = ()
    """Explanations other than the accusation that remain if the null is false."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """What `judge` was called with, so that it can be called again."""
    series: Mapping[str, list[float]] = field(default_factory=dict)
    """What the report draws: name to values, at most a few hundred each."""
    reason: str | None = None
    """Why the test could not run, and what would let it."""

    @property
    def ran(self) -> bool:
        return self.reason is None


Judge = Callable[[pa.Table, Mapping[str, Any]], Finding]
"""From a transcript and parameters to a finding; pure."""
