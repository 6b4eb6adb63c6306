"""Loads and validates studies: several recipes for several seeds, evaluated on the same tests, with claims.

A study is a YAML file like a recipe, with the key `study` for its name. Every arm is a recipe: `common`
merged with the arm's own keys. In it, `{data}` is replaced by the directory of the seed's data and `{runs}`
by that of its arms, so that an arm can use another's student. Loading a study reads no data and no model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from annotated_types import MinLen

from stillhouse.errors import RecipeError
from stillhouse.recipe.field_types import NonNegativeInt, PathText, PositiveFloat, PositiveInt, Text
from stillhouse.recipe.load import apply_override, build_recipe, read_text, validate
from stillhouse.recipe.paths import resolve_paths
from stillhouse.recipe.sections import Evaluate, Recipe
from stillhouse.recipe.suggest import did_you_mean
from stillhouse.recipe.validation import directory_name
from stillhouse.recipe.verifiers import Verifier
from stillhouse.recipe.yaml_lines import Origins, read_yaml

TestMeasure = Literal["pass_at_1", "consensus_at_k", "thought", "tokens"]
ReportMeasure = Literal["kl", "agreement", "nll"]
Measure = Literal["pass_at_1", "consensus_at_k", "thought", "tokens", "kl", "agreement", "nll"]
TEST_MEASURES: tuple[TestMeasure, ...] = get_args(TestMeasure)
"""Measures of the answers to a test."""
REPORT_MEASURES: tuple[ReportMeasure, ...] = get_args(ReportMeasure)
"""Measures of the arms' own reports, on the prompts that each run holds out."""
TRAIN_FILE, TEST_FILE = "train.jsonl", "test.jsonl"
"""Files in `{data}` that `questions` is split into."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of a study's recipes."""

    label: Text
    """A short description."""
    recipe: Annotated[dict[str, Any], Recipe]
    """Keys of a recipe, merged into the study's `common`."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim about methods from the literature, and the comparison that tests it."""

    says: Text
    """The claim, with its source."""
    arm: Text
    """The arm that is claimed to be better …"""
    over: Text
    """… than this one."""
    test: Text | None = None
    """The test on which they are compared; not for `kl`, `agreement` and `nll`. May be left out if there is
    only one."""
    measure: Measure = "pass_at_1"
    """A measure of the answers to the test, or of the arms' reports (`kl` and `nll`: lower is better)."""
    margin: float = 0.0
    """The interval of the advantage must lie above this; a negative margin claims to be no worse."""
    cheaper: PositiveFloat | None = None
    """The arm must also take this many times fewer operations."""


@dataclass(frozen=True, kw_only=True)
class Questions:
    """A file of questions that each seed splits into `{data}/train.jsonl` and `{data}/test.jsonl`."""

    source: PathText
    """A prompt file (or `package:mmlu`); its other columns, such as `answer`, are kept for verifiers."""
    column: Text | None = None
    """Column that holds the question (default: found by its name)."""
    test: PositiveInt = 50
    """Number of test questions."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A whole study."""

    study: Text
    """Name of the study; its directory is runs/<name>."""
    seeds: Annotated[tuple[NonNegativeInt, ...], MinLen(1)]
    questions: Questions | None = None
    """A file of questions, in place of `make`: then `common.prompts.source` and `tests` have defaults."""
    make: PathText | None = None
    """Python file; its `make(directory, seed, settings)` writes a seed's data."""
    settings: dict[str, Any] = field(default_factory=dict)
    """Passed to `make`."""
    common: Annotated[dict[str, Any], Recipe] = field(default_factory=dict)
    """Keys of every arm's recipe."""
    arms: Annotated[dict[str, Arm], MinLen(1)]
    """Arms by name, in the order in which they run."""
    tests: dict[str, PathText] = field(default_factory=dict)
    """Prompt files by name; every arm's student answers all of them. Without tests, the arms' reports are
    compared."""
    verifiers: tuple[Verifier, ...] = ()
    """Verifiers that score the answers."""
    answers: Evaluate = field(default_factory=lambda: Evaluate(samples=8))
    """`samples`, `temperature` and `sample_tokens` for the tests, `confidence` of the intervals."""
    claims: tuple[Claim, ...] = ()


def is_study(path: Path) -> bool:
    """Whether the file has the key ``study``; False if it cannot be read."""
    try:
        return re.search(r"^study:", path.read_text("utf-8"), re.MULTILINE) is not None
    except (OSError, UnicodeDecodeError):
        return False


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Loads a study, applies overrides, resolves paths, and validates it with each arm's recipe.

    Raises:
        RecipeError: the file cannot be read or is invalid.
    """
    values, origins = read_yaml(read_text(path), str(path))
    if not isinstance(values, dict):
        raise RecipeError(f"{path}:1: a study is a mapping of keys (study, seeds, arms, …)")
    for override in overrides:
        apply_override(override, values, origins)
    _default_files(values)
    values = resolve_paths(Study, values, origins, path.parent)
    study = validate(Study, values, origins, _broken_rules)
    for name in study.arms:
        _arm(study, name, study.seeds[0], Path("data"), Path("runs"), _arm_origins(origins, name))
    return study


def _default_files(values: dict[str, Any]) -> None:
    """Sets the prompts of the arms and the test from `questions`, where the file does not set them."""
    if not isinstance(values.get("questions"), dict):
        return
    common = values.setdefault("common", {})
    prompts = common.setdefault("prompts", {}) if isinstance(common, dict) else None
    if isinstance(prompts, dict):
        prompts.setdefault("source", f"{{data}}/{TRAIN_FILE}")
    if values.get("verifiers"):
        values.setdefault("tests", {"test": f"{{data}}/{TEST_FILE}"})


def arm_recipe(study: Study, name: str, seed: int, data: Path, runs: Path) -> Recipe:
    """The recipe of an arm for one seed.

    Args:
        data, runs: the values of `{data}` and `{runs}`.

    Raises:
        RecipeError: it is not a valid recipe.
    """
    return _arm(study, name, seed, data, runs, {(): f"arm {name}"})


def _arm(study: Study, name: str, seed: int, data: Path, runs: Path, origins: Origins) -> Recipe:
    values = _merge(study.common, study.arms[name].recipe)
    values = _substitute(values, {"data": str(data), "runs": str(runs)})
    return build_recipe({"name": name, "seed": seed} | values, origins)


def _arm_origins(origins: Origins, name: str) -> Origins:
    """The line of each key of an arm's recipe: in the arm itself, or in `common`."""
    own = ("arms", name, "recipe")
    common = {path[1:]: origin for path, origin in origins.items() if path[:1] == ("common",)}
    return common | {path[3:]: origin for path, origin in origins.items() if path[:3] == own}


def required_arms(study: Study, name: str) -> tuple[str, ...]:
    """The arms whose results an arm's recipe uses, directly or through another; each after its own."""
    required: dict[str, None] = {}  # a dictionary as an ordered set
    for other in _references(study, name):
        if other in study.arms and other != name:
            required |= dict.fromkeys((*required_arms(study, other), other))
    return tuple(required)


def _references(study: Study, name: str) -> list[str]:
    """The directories below `{runs}` that the recipe of an arm names, in order."""
    text = json.dumps(_merge(study.common, study.arms[name].recipe), ensure_ascii=False)
    return re.findall(r"\{runs\}/([\w-]+)", text)


def _broken_rules(study: Study) -> Iterator[tuple[str, str]]:
    """Violations of rules that involve several fields: key and message."""
    yield from directory_name("study", study.study)
    before: list[str] = []
    recipes = {f"arms.{name}.recipe": arm.recipe for name, arm in study.arms.items()}
    for section, keys in ({"common": study.common} | recipes).items():
        for key in {"name", "seed"} & keys.keys():
            yield f"{section}.{key}", "must not be set: it is the arm's name, or the study's seed"
    for name in study.arms:
        if not re.fullmatch(r"\w[\w-]*", name) or name == "data":
            yield f"arms.{name}", "must be letters, digits, `-` and `_`, and not `data`: it names a directory"
        if missing := set(_references(study, name)) - set(before):
            yield f"arms.{name}", f"{', '.join(sorted(missing))} must be an arm before it"
        before.append(name)
    if study.make is not None and study.questions is not None:
        yield "make", "must not be set together with `questions`"
    if study.tests and not study.verifiers:
        yield "tests", "need `verifiers` that score the answers"
    for number, claim in enumerate(study.claims):
        yield from _broken_claim(study, number, claim)
    if not study.answers.samples:
        yield "answers.samples", "must be at least 1"


def _broken_claim(study: Study, number: int, claim: Claim) -> Iterator[tuple[str, str]]:
    for key, known in (("arm", study.arms), ("over", study.arms), ("test", study.tests)):
        value = getattr(claim, key)
        if value is not None and value not in known:
            near = did_you_mean(value, known) or f"There are {', '.join(known) or 'none'}."
            yield "claims", f"[{number}].{key}: there is no `{value}`. {near}"
    if claim.measure in REPORT_MEASURES:
        if claim.test is not None:
            yield (
                "claims",
                f"[{number}].test: `{claim.measure}` is a measure of the arms' reports, not of a test",
            )
    elif claim.test is None and len(study.tests) != 1:
        names = ", ".join(study.tests) or "none"
        yield "claims", f"[{number}].test: must be set for `{claim.measure}`. There are {names}."


def _merge(base: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Merges mappings recursively; lists and values are replaced."""
    merged = dict(base)
    for key, value in overrides.items():
        inner = merged.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            merged[key] = _merge(inner, value)
        else:
            merged[key] = value
    return merged


def _substitute(value: Any, variables: Mapping[str, str]) -> Any:
    """Replaces ``{name}`` in all strings of nested mappings and lists."""
    if isinstance(value, str):
        for name, text in variables.items():
            value = value.replace(f"{{{name}}}", text)
        return value
    if isinstance(value, Mapping):
        return {key: _substitute(inner, variables) for key, inner in value.items()}
    return [_substitute(inner, variables) for inner in value] if isinstance(value, list) else value
