"""A study: the same recipes for several seeds, measured on the same tests, and claims held against them.

A YAML file like a recipe's, with `study` for its name. Every arm is a recipe (`common` with the arm's own
keys laid over it); `{data}` in it stands for the directory of the seed's data and `{runs}` for that of its
arms, so that an arm learns from another's student. Reading a study reads no data and opens no model.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import MinLen

from stillhouse.errors import RecipeError
from stillhouse.recipe.field_types import NonNegativeInt, PositiveFloat, Text
from stillhouse.recipe.load import apply_override, build_recipe, read_text, validate
from stillhouse.recipe.sections import Evaluate, Recipe
from stillhouse.recipe.suggest import did_you_mean
from stillhouse.recipe.validation import directory_name
from stillhouse.recipe.verifiers import Verifier
from stillhouse.recipe.yaml_lines import Origins, read_yaml

Measure = Literal["pass_at_1", "consensus_at_k", "thought", "tokens"]


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One recipe of a study."""

    label: Text
    """What it is, in a few words."""
    recipe: dict[str, Any]
    """Keys of a recipe, laid over the study's `common`."""


@dataclass(frozen=True, kw_only=True)
class Claim:
    """Something said elsewhere of methods, and what would show it here."""

    says: Text
    """The claim, with its source."""
    arm: Text
    """The arm that is said to be better …"""
    over: Text
    """… than this one."""
    test: Text
    """On this test."""
    measure: Measure = "pass_at_1"
    margin: float = 0.0
    """The interval of the difference must lie above this; below 0 it is a claim of being no worse."""
    cheaper: PositiveFloat | None = None
    """Also, the arm's own operations must be this many times fewer."""


@dataclass(frozen=True, kw_only=True)
class Study:
    """A whole study."""

    study: Text
    """Its name; its directory is runs/<name>."""
    seeds: Annotated[tuple[NonNegativeInt, ...], MinLen(1)]
    make: Text
    """Python file beside the study's; its function `make(directory, seed, settings)` writes a seed's data."""
    settings: dict[str, Any] = field(default_factory=dict)
    """What it is called with."""
    common: dict[str, Any] = field(default_factory=dict)
    """Keys of every arm's recipe."""
    arms: Annotated[dict[str, Arm], MinLen(1)]
    """By name, in the order in which they run."""
    tests: Annotated[dict[str, Text], MinLen(1)]
    """Prompt files by name; every arm answers all of them."""
    verifiers: Annotated[tuple[Verifier, ...], MinLen(1)]
    """What makes an answer right."""
    answers: Evaluate = field(default_factory=lambda: Evaluate(samples=8))
    """`samples`, `temperature` and `sample_tokens` of the tests, `confidence` of the intervals."""
    claims: tuple[Claim, ...] = ()


def is_study(path: Path) -> bool:
    """Whether the file has a study's first key; a file that cannot be read is none."""
    try:
        return re.search(r"^study:", path.read_text("utf-8"), re.MULTILINE) is not None
    except (OSError, UnicodeDecodeError):
        return False


def load_study(path: Path, overrides: Sequence[str] = ()) -> Study:
    """Reads, overrides and checks a study, each arm's recipe too.

    Raises:
        RecipeError: the file cannot be read, or something in it is wrong.
    """
    values, origins = read_yaml(read_text(path), str(path))
    if not isinstance(values, dict):
        raise RecipeError(f"{path}:1: a study is a mapping of keys (study, seeds, arms, …)")
    for override in overrides:
        apply_override(override, values, origins)
    study = validate(Study, values, origins, _broken_rules)
    for name in study.arms:
        _arm(study, name, study.seeds[0], Path("data"), Path("runs"), _arm_origins(origins, name))
    return study


def arm_recipe(study: Study, name: str, seed: int, data: Path, runs: Path) -> Recipe:
    """The recipe of an arm for one seed.

    Args:
        data, runs: what `{data}` and `{runs}` stand for.

    Raises:
        RecipeError: it is no recipe.
    """
    return _arm(study, name, seed, data, runs, {(): f"arm {name}"})


def _arm(study: Study, name: str, seed: int, data: Path, runs: Path, origins: Origins) -> Recipe:
    values = _laid_over(study.common, study.arms[name].recipe)
    values = _filled(values, {"data": str(data), "runs": str(runs)})
    return build_recipe({"name": name, "seed": seed} | values, origins)


def _arm_origins(origins: Origins, name: str) -> Origins:
    """Where the keys of an arm's recipe were written: with the arm itself, or in `common`."""
    own = ("arms", name, "recipe")
    common = {path[1:]: place for path, place in origins.items() if path[:1] == ("common",)}
    return common | {path[3:]: place for path, place in origins.items() if path[:3] == own}


def learned_from(study: Study, name: str) -> tuple[str, ...]:
    """The arms whose results an arm's recipe names, theirs before them."""
    found: dict[str, None] = {}
    for other in _named(study, name):
        if other in study.arms and other != name:
            found |= dict.fromkeys((*learned_from(study, other), other))
    return tuple(found)


def _named(study: Study, name: str) -> list[str]:
    """What the recipe of an arm names below `{runs}`, in order."""
    text = json.dumps(_laid_over(study.common, study.arms[name].recipe), ensure_ascii=False)
    return re.findall(r"\{runs\}/([\w-]+)", text)


def _broken_rules(study: Study) -> Iterator[tuple[str, str]]:
    """What is wrong with a study whose fields fit: key and complaint."""
    yield from directory_name("study", study.study)
    before: list[str] = []
    recipes = {f"arms.{name}.recipe": arm.recipe for name, arm in study.arms.items()}
    for section, keys in ({"common": study.common} | recipes).items():
        for key in {"name", "seed"} & keys.keys():
            yield f"{section}.{key}", "is the arm's name, and the study's seed; it must not be set"
    for name in study.arms:
        if not re.fullmatch(r"\w[\w-]*", name) or name == "data":
            yield f"arms.{name}", "must be letters, digits, `-` and `_`, and not `data`: it names a directory"
        if missing := set(_named(study, name)) - set(before):
            yield f"arms.{name}", f"{', '.join(sorted(missing))} must be an arm before it"
        before.append(name)
    for number, claim in enumerate(study.claims):
        for key, known in (("arm", study.arms), ("over", study.arms), ("test", study.tests)):
            if (value := getattr(claim, key)) not in known:
                near = did_you_mean(value, known) or f"There are {', '.join(known)}."
                yield "claims", f"[{number}].{key}: there is no `{value}`. {near}"
    if not study.answers.samples:
        yield "answers.samples", "must be at least 1"


def _laid_over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """``above`` over ``below``, mapping by mapping; lists and values are replaced."""
    merged = dict(below)
    for key, value in above.items():
        inner = merged.get(key)
        if isinstance(inner, Mapping) and isinstance(value, Mapping):
            merged[key] = _laid_over(inner, value)
        else:
            merged[key] = value
    return merged


def _filled(value: Any, places: Mapping[str, str]) -> Any:
    if isinstance(value, str):
        for name, place in places.items():
            value = value.replace(f"{{{name}}}", place)
        return value
    if isinstance(value, Mapping):
        return {key: _filled(inner, places) for key, inner in value.items()}
    return [_filled(inner, places) for inner in value] if isinstance(value, list) else value
