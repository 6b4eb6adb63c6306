"""All verifiers of a recipe, opened: answers in, the weighted mean of their scores out."""

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
from stillhouse.verifiers.plain import exact, form, numeric
from stillhouse.verifiers.sandbox import run_tests
from stillhouse.verifiers.scorer_process import LoadError, ScorerProcess
from stillhouse.verifiers.types import Answer, Score, VerifierFailure

PACKAGES = {"math": "math_verify", "reasoning_gym": "reasoning_gym"}
VOTES = ("exact", "numeric", "math", "reasoning_gym")
"""Kinds whose extracted answer can be counted in a majority vote."""


class Verifiers:
    """Open verifiers; close them (or use ``with``) to end their processes."""

    def __init__(self, settings: Sequence[Verifier]) -> None:
        assert settings, "no verifier"
        self.failures: Counter[str] = Counter({verifier.kind: 0 for verifier in settings})
        """Verdicts that were not reached, by kind."""
        self._settings = tuple(settings)
        self._children: list[ScorerProcess] = []
        try:
            self._checks = [self._open(verifier) for verifier in settings]
        except BaseException:
            self.close()
            raise
        self._total = sum(verifier.weight for verifier in settings)

    def __enter__(self) -> Verifiers:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the children."""
        for child in self._children:
            child.close()

    def score(self, answers: Sequence[Answer]) -> list[Score]:
        """One score for each answer: the mean by weight; ``failed`` where any verifier came to no verdict."""
        return [self._mean(answer) for answer in answers]

    def vote(self, answer: Answer) -> str | None:
        """What ``answer`` counts for in a majority vote: its extracted answer, blanks made even."""
        verifier = next((v for v in self._settings if v.kind in VOTES), None)
        found = extract(answer.text, verifier.extract if verifier else "whole")
        return None if found is None else " ".join(found.split())

    def _mean(self, answer: Answer) -> Score:
        scores = [self._one(v, check, answer) for v, check in zip(self._settings, self._checks, strict=True)]
        total = sum(v.weight * s.value for v, s in zip(self._settings, scores, strict=True))
        details = [
            f"{verifier.kind} {score.value:g}" + (f" ({score.detail})" if score.detail else "")
            for verifier, score in zip(self._settings, scores, strict=True)
        ]
        value = min(1.0, max(0.0, total / self._total))
        return Score(value, "; ".join(details), any(score.failed for score in scores))

    def _one(self, verifier: Verifier, check: Callable[[Answer], Score], answer: Answer) -> Score:
        try:
            score = check(answer)
            if not math.isfinite(score.value):
                raise VerifierFailure(f"said {score.value}, no finite number")
        except Exception as error:
            self.failures[verifier.kind] += 1
            what = str(error) if isinstance(error, VerifierFailure) else f"{type(error).__name__}: {error}"
            return Score(0.0, what[:500], failed=True)
        return Score(min(1.0, max(0.0, score.value)), score.detail, score.failed)

    def _open(self, verifier: Verifier) -> Callable[[Answer], Score]:
        kind = verifier.kind
        if kind == "format":
            return form
        if kind == "code":
            return lambda answer: run_tests(answer.text, _reference(answer, verifier), verifier)
        if kind == "exact":
            return _looking(verifier, exact)
        if kind == "numeric":
            return _looking(verifier, lambda said, right: numeric(said, right, verifier.tolerance))
        child = _start(verifier)
        self._children.append(child)
        if kind == "function":
            return lambda answer: Score(child.score({"row": _row(answer)}, verifier.timeout_s))
        if kind == "reasoning_gym":
            return _looking(
                verifier,
                lambda said, tags: Score(child.score({"said": said, **tags}, verifier.timeout_s)),
                _entry,
            )
        return _looking(
            verifier,
            lambda said, right: Score(child.score({"said": said, "reference": right}, verifier.timeout_s)),
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
    """Raises what :func:`open_verifiers` would raise, sooner: before anybody is asked and paid."""
    _require_packages(settings)
    own = [verifier for verifier in settings if verifier.kind == "function"]
    if own:
        open_verifiers(own).close()


def _require_packages(settings: Sequence[Verifier]) -> None:
    for verifier in settings:
        package = PACKAGES.get(verifier.kind)
        if package is not None and importlib.util.find_spec(package) is None:
            raise MissingExtraError(
                f"the verifier {verifier.kind} needs the package {package}, which is not installed",
                hint='pip install "stillhouse[reasoning]"',
            )


def _start(verifier: Verifier) -> ScorerProcess:
    child = ScorerProcess(
        {"kind": verifier.kind, "function": verifier.function, "timeout_s": verifier.timeout_s}
    )
    try:
        child.start()
    except LoadError as error:
        what = verifier.function or verifier.kind
        raise RecipeError(f"the verifier {what} does not load: {error}") from error
    return child


def _looking(
    verifier: Verifier,
    judge: Callable[[str, Any], Score],
    reference: Callable[[Answer, Verifier], Any] | None = None,
) -> Callable[[Answer], Score]:
    """A check of the extracted answer against the reference."""

    def check(answer: Answer) -> Score:
        right = (reference or _reference)(answer, verifier)
        said = extract(answer.text, verifier.extract)
        return Score(0.0, f"no answer ({verifier.extract})") if said is None else judge(said, right)

    return check


def _reference(answer: Answer, verifier: Verifier) -> str:
    value = answer.tags.get(verifier.answer)
    if value is None:
        raise VerifierFailure(f"the prompt has no column {verifier.answer!r}")
    return str(value)


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
    """What a user's function is called with: the answer, and the conversation that it ends."""
    said: dict[str, Any] = {"role": "assistant", "content": answer.text}
    if answer.reasoning:
        said["reasoning_content"] = answer.reasoning
    return {
        "text": answer.text,
        "reasoning": answer.reasoning,
        "tags": dict(answer.tags),
        "messages": [*map(dict, answer.messages), said],
    }
