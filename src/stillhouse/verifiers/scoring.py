"""Scores answers with all verifiers of a recipe: the weighted mean of their scores."""

from __future__ import annotations

import importlib.util
import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

from stillhouse.errors import MissingExtraError, RecipeError
from stillhouse.recipe import Verifier
from stillhouse.verifiers.extract import extract
from stillhouse.verifiers.sandbox import run_tests
from stillhouse.verifiers.scorer_process import LoadError, ScorerProcess
from stillhouse.verifiers.text_verifiers import exact_match, format_check, numeric_match
from stillhouse.verifiers.types import Answer, Score, VerifierFailure

REQUIRED_PACKAGES = {"math": "math_verify", "reasoning_gym": "reasoning_gym"}
VOTING_KINDS = ("exact", "numeric", "math", "reasoning_gym")
"""Kinds whose extracted answer can take part in a majority vote."""


class Verifiers:
    """The open verifiers of a recipe; close them (or use ``with``) to end their processes."""

    def __init__(self, settings: Sequence[Verifier]) -> None:
        assert settings, "no verifier"
        self.failures: Counter[str] = Counter({verifier.kind: 0 for verifier in settings})
        """Answers that a verifier could not score, by its kind."""
        self._settings = tuple(settings)
        self._processes: list[ScorerProcess] = []
        try:
            self._checks = [self._open(verifier) for verifier in settings]
        except BaseException:
            self.close()
            raise
        self._total_weight = sum(verifier.weight for verifier in settings)

    def __enter__(self) -> Verifiers:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the child processes."""
        for process in self._processes:
            process.close()

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """One score for each answer: the weighted mean; ``failed`` if any verifier failed."""
        return [self._weighted_mean(answer) for answer in answers]

    def vote(self, answer: Answer) -> str | None:
        """The vote of ``answer`` in a majority vote: its extracted answer with single spaces, or None."""
        verifier = next((v for v in self._settings if v.kind in VOTING_KINDS), None)
        extracted = extract(answer.text, verifier.extract if verifier else "whole")
        return None if extracted is None else " ".join(extracted.split())

    def _weighted_mean(self, answer: Answer) -> Score:
        scores = [
            self._score_one(v, check, answer) for v, check in zip(self._settings, self._checks, strict=True)
        ]
        total = sum(v.weight * s.value for v, s in zip(self._settings, scores, strict=True))
        details = [
            f"{verifier.kind} {score.value:g}" + (f" ({score.detail})" if score.detail else "")
            for verifier, score in zip(self._settings, scores, strict=True)
        ]
        value = min(1.0, max(0.0, total / self._total_weight))
        return Score(value, "; ".join(details), any(score.failed for score in scores))

    def _score_one(self, verifier: Verifier, check: Callable[[Answer], Score], answer: Answer) -> Score:
        try:
            score = check(answer)
            if not math.isfinite(score.value):
                raise VerifierFailure(f"returned {score.value}, not a finite number")
        except Exception as error:  # a user's function and third-party scorers may raise anything
            self.failures[verifier.kind] += 1
            detail = str(error) if isinstance(error, VerifierFailure) else f"{type(error).__name__}: {error}"
            return Score(0.0, detail[:500], failed=True)
        return Score(min(1.0, max(0.0, score.value)), score.detail, score.failed)

    def _open(self, verifier: Verifier) -> Callable[[Answer], Score]:
        kind = verifier.kind
        if kind == "format":
            return format_check
        if kind == "code":
            return lambda answer: run_tests(answer.text, _reference(answer, verifier), verifier)
        if kind == "exact":
            return _comparison(verifier, exact_match)
        if kind == "numeric":
            return _comparison(
                verifier, lambda text, reference: numeric_match(text, reference, verifier.tolerance)
            )
        process = _start(verifier)
        self._processes.append(process)
        if kind == "function":
            return lambda answer: Score(process.score({"row": _row(answer)}, verifier.timeout_s))
        if kind == "reasoning_gym":
            return _comparison(
                verifier,
                lambda text, entry: Score(process.score({"answer": text, **entry}, verifier.timeout_s)),
                _entry,
            )
        return _comparison(
            verifier,
            lambda text, reference: Score(
                process.score({"answer": text, "reference": reference}, verifier.timeout_s)
            ),
        )


def open_verifiers(settings: Sequence[Verifier]) -> Verifiers:
    """Opens the verifiers of a recipe.

    Raises:
        MissingExtraError: a kind needs a package that is not installed.
        RecipeError: the user's function cannot be loaded.
    """
    _require_packages(settings)
    return Verifiers(settings)


def check_verifiers(settings: Sequence[Verifier]) -> None:
    """Raises the errors of :func:`open_verifiers` early, before a teacher is asked and paid."""
    _require_packages(settings)
    # The other kinds load whenever their package is installed, which takes seconds (sympy).
    functions = [verifier for verifier in settings if verifier.kind == "function"]
    if functions:
        open_verifiers(functions).close()


def _require_packages(settings: Sequence[Verifier]) -> None:
    for verifier in settings:
        package = REQUIRED_PACKAGES.get(verifier.kind)
        if package is not None and importlib.util.find_spec(package) is None:
            raise MissingExtraError(
                f"the verifier {verifier.kind} needs the package {package}, which is not installed",
                hint='pip install "stillhouse[reasoning]"',
            )


def _start(verifier: Verifier) -> ScorerProcess:
    process = ScorerProcess(
        {"kind": verifier.kind, "function": verifier.function, "timeout_s": verifier.timeout_s}
    )
    try:
        process.start()
    except LoadError as error:
        name = verifier.function or verifier.kind
        raise RecipeError(f"the verifier {name} does not load: {error}") from error
    return process


def _comparison(
    verifier: Verifier,
    compare: Callable[[str, Any], Score],
    reference: Callable[[Answer, Verifier], Any] | None = None,
) -> Callable[[Answer], Score]:
    """A check that compares the extracted answer with the reference."""

    def check(answer: Answer) -> Score:
        expected = (reference or _solution_answer)(answer, verifier)
        text = extract(answer.text, verifier.extract)
        return Score(0.0, f"no answer ({verifier.extract})") if text is None else compare(text, expected)

    return check


def _reference(answer: Answer, verifier: Verifier) -> str:
    value = answer.tags.get(verifier.answer)
    if value is None:
        raise VerifierFailure(f"the prompt has no column {verifier.answer!r}")
    return str(value)


def _solution_answer(answer: Answer, verifier: Verifier) -> str:
    """The reference; of a whole solution that ends as GSM8K's do (`#### 72`) what follows the mark."""
    value = _reference(answer, verifier)
    reads_mark = verifier.extract == "gsm8k" or verifier.kind in ("numeric", "math")
    return (extract(value, "gsm8k") if reads_mark else None) or value


def _entry(answer: Answer, verifier: Verifier) -> dict[str, Any]:
    try:
        entry = answer.tags["entry"]
        return {
            "dataset": answer.tags["dataset"],
            "entry": json.loads(entry) if isinstance(entry, str) else entry,
        }
    except KeyError as error:
        raise VerifierFailure(f"the prompt has no column {error}: it is not from reasoning_gym") from error


def _row(answer: Answer) -> dict[str, Any]:
    """The argument of a user's function: the answer, its tags, and the whole conversation."""
    message: dict[str, Any] = {"role": "assistant", "content": answer.text}
    if answer.reasoning:
        message["reasoning_content"] = answer.reasoning
    return {
        "text": answer.text,
        "reasoning": answer.reasoning,
        "tags": dict(answer.tags),
        "messages": [*map(dict, answer.messages), message],
    }
