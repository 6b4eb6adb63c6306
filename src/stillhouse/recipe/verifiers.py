"""Recipe sections for verifiable answers: verifiers and rejection sampling (see :mod:`.sections`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stillhouse.recipe.field_types import NonNegativeFloat, PositiveFloat, PositiveInt, Share, Text


@dataclass(frozen=True, kw_only=True)
class Verifier:
    """A check of whether an answer is right. The reward is the weighted mean of all verifiers."""

    kind: Literal["reasoning_gym", "math", "exact", "numeric", "format", "code", "function"]
    """`reasoning_gym` scorers, `math` (math-verify), `exact` or `numeric` match, `format` (thoughts, then an
    answer), `code` with tests, or your own `function`."""
    weight: PositiveFloat = 1.0
    """Weight in the mean."""
    answer: Text = "answer"
    """Prompt column with the reference answer (`code`: the tests)."""
    extract: Literal["answer_tag", "boxed", "gsm8k", "last_line", "last_number", "whole"] = "whole"
    """The answer within the text: the content of `<answer>` or `\\boxed`, what follows `####` (`gsm8k`), the
    last line or number, or all."""
    function: str | None = None
    """`function`: `module:function`; gets the row, returns a number from 0 to 1, or true or false."""
    tolerance: NonNegativeFloat = 1e-6
    """`numeric`: largest relative difference."""
    timeout_s: PositiveFloat = 5.0
    """Seconds after which an answer scores 0."""
    memory_mb: PositiveInt = 512
    """`code`: memory limit of the child process, in MiB."""


@dataclass(frozen=True, kw_only=True)
class Select:
    """Rejection sampling: train only on verified answers."""

    min_reward: Share = 1.0
    """Smallest reward (the weighted mean of the verifiers) of a kept answer."""
    per_prompt: PositiveInt | None = 1
    """Maximum number of answers kept per prompt; none: all."""
    prefer: Literal["shorter", "first"] = "shorter"
    """Which of a prompt's right answers to keep first."""
