"""Sections of a recipe for answers that can be checked: verifiers, and rejection sampling.

Plain values like those of :mod:`stillhouse.recipe`, which takes them in; see there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stillhouse.recipe.field_types import NonNegativeFloat, PositiveFloat, PositiveInt, Share, Text


@dataclass(frozen=True, kw_only=True)
class Verifier:
    """One way to tell whether an answer is right; the reward is the weighted mean of all of them."""

    kind: Literal["reasoning_gym", "math", "exact", "numeric", "format", "code", "function"]
    """`reasoning_gym` scorers, `math` (math-verify), `exact` or `numeric` match, `format` (thoughts, then an
    answer), `code` against tests, or a `function` of yours."""
    weight: PositiveFloat = 1.0
    """Weight in the mean."""
    answer: Text = "answer"
    """Column of the prompts that holds the reference answer (`code`: the tests)."""
    extract: Literal["answer_tag", "boxed", "last_line", "last_number", "whole"] = "whole"
    """What of the text is the answer: what `<answer>` or `\\boxed` holds, the last line or number, all."""
    function: str | None = None
    """`function`: `module:function`, called with the row; a number from 0 to 1, or true and false."""
    tolerance: NonNegativeFloat = 1e-6
    """`numeric`: largest relative difference."""
    timeout_s: PositiveFloat = 5.0
    """Seconds after which an answer scores 0."""
    memory_mb: PositiveInt = 512
    """`code`: memory of the child that runs it."""


@dataclass(frozen=True, kw_only=True)
class Select:
    """Rejection sampling: of each prompt's answers, only verified ones are learned from."""

    min_reward: Share = 1.0
    """Smallest reward (the verifiers' weighted mean) of an answer that is kept."""
    per_prompt: PositiveInt | None = 1
    """Most answers kept for each prompt."""
    prefer: Literal["shorter", "first"] = "shorter"
    """Which of a prompt's right answers are kept first."""
