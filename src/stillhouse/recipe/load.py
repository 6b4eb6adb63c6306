"""Reads recipes with overrides, validates and saves them.

Every complaint names its file and line, or its override, and suggests the nearest valid word for a misspelt
one. Reading a recipe opens no model and no prompt file.
"""

from __future__ import annotations

import dataclasses
import json
import math
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from stillhouse.errors import RecipeError
from stillhouse.hashing import sha256_text
from stillhouse.recipe.field_types import hashed_values
from stillhouse.recipe.paths import map_paths, resolve_path, resolve_paths
from stillhouse.recipe.retired import RetiredValues, restore_retired, retired_complaints, take_retired
from stillhouse.recipe.sections import Recipe
from stillhouse.recipe.shipped import shipped_recipes
from stillhouse.recipe.suggest import did_you_mean, nearest
from stillhouse.recipe.validation import broken_rules
from stillhouse.recipe.yaml_lines import KeyPath, Origins, dump_yaml, read_yaml

T = TypeVar("T")
NOT_YAML = frozenset("*&!%@`")
"""An override that begins with one of these is text: `*.jsonl` is a pattern of files, not a YAML alias."""

PROMPT_SUFFIXES = (".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")
"""Files of prompts that cannot be recipes (JSON is YAML)."""


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Reads a recipe, applies overrides, resolves paths (:mod:`.paths`) and validates it.

    Args:
        path: a YAML file.
        overrides: ``section.field=value``, the value as YAML; later ones win.

    Raises:
        RecipeError: the file cannot be read or is invalid; the message lists all complaints with their
            locations.
    """
    path = Path(path)
    values, origins = _read_mapping(read_text(path), str(path), overrides)
    return build_recipe(resolve_paths(Recipe, values, origins, path.parent), origins)


def load_run_recipe(directory: str | Path) -> Recipe:
    """The recipe of the run in ``directory``, with its paths as this process opens them.

    Raises:
        RecipeError: the file cannot be read or is invalid.
    """
    directory = Path(directory)
    recipe, _ = load_recorded_recipe(directory / "recipe.yaml")
    return map_paths(Recipe, recipe, lambda _, text: resolve_path(text, directory)[0])


def load_recorded_recipe(path: str | Path) -> tuple[Recipe, RetiredValues]:
    """Reads the resolved recipe of a run, which an older version may have written; paths stay as written.

    Returns:
        The recipe, and the values of its retired keys, valid or not, for :func:`.retired.restore_retired`.

    Raises:
        RecipeError: the file cannot be read, or anything else in it is invalid.
    """
    values, origins = _read_mapping(read_text(Path(path)), str(path))
    retired = take_retired(values)
    return build_recipe(values, origins), retired


def read_text(file: Path, what: str = "recipe") -> str:
    """The text of a file that holds a ``what``.

    Raises:
        RecipeError: the file cannot be read; if it does not exist, the hint names the nearest one.
    """
    if what == "recipe" and file.is_file() and file.suffix.lower() in PROMPT_SUFFIXES:
        raise RecipeError(
            f"{file} is a file of prompts, not a recipe",
            hint=f"Name it in a recipe, as prompts.source: {file.name}; `still init` writes a recipe.",
        )
    try:
        return file.read_text("utf-8")
    except FileNotFoundError as error:
        candidates = {path.stem: str(path) for path in sorted(file.parent.glob("*.y*ml"))}
        shipped = shipped_recipes() if what == "recipe" and len(file.parts) == 1 else ()  # a name, not a path
        candidates = {name: name for name in shipped} | candidates
        near = nearest(file.stem, candidates)
        hint = f"Did you mean `{candidates[near]}`?" if near else None
        if near is None and shipped:
            hint = f"Recipes that come with Stillhouse: {', '.join(shipped)}."
        raise RecipeError(f"no such {what}: {file}", hint=hint) from error
    except IsADirectoryError as error:
        inside = file / "recipe.yaml"
        hint = f"Did you mean `{inside}`?" if inside.is_file() else None
        raise RecipeError(f"{file} is a directory, not a {what}", hint=hint) from error
    except OSError as error:
        raise RecipeError(f"cannot read the {what} {file}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise RecipeError(f"{file} is not a {what}: it is not UTF-8 text") from error


def parse_recipe(text: str, *, name: str = "<text>", overrides: Sequence[str] = ()) -> Recipe:
    """Like `load_recipe`, from text; ``name`` is the file name in error messages. Paths stay as written."""
    return build_recipe(*_read_mapping(text, name, overrides))


def _read_mapping(text: str, name: str, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], Origins]:
    values, origins = read_yaml(text, name)
    if not isinstance(values, dict):
        raise RecipeError(f"{name}:1: a recipe is a mapping of keys (name, teacher, …), not {_show(values)}")
    for override in overrides:
        apply_override(override, values, origins)
    return values, origins


def build_recipe(values: dict[str, Any], origins: Origins) -> Recipe:
    """Builds a recipe from nested values and validates it.

    Args:
        values: values by key; modified.
        origins: locations of the values for complaints; at least that of the whole, ``()``.

    Raises:
        RecipeError: a value is invalid; the message lists all complaints with their locations.
    """
    _default_teacher(values)
    _default_sampling(values)
    retired = list(retired_complaints(take_retired(values)))
    return validate(Recipe, values, origins, broken_rules, retired)


def validate(
    kind: type[T],
    values: dict[str, Any],
    origins: Origins,
    rules: Callable[[T], Iterable[tuple[str, str]]],
    complaints: Iterable[tuple[KeyPath, str]] = (),
) -> T:
    """Builds a dataclass from nested ``values``.

    Args:
        rules: yields dotted keys and complaints for a dataclass whose fields are valid by themselves.
        complaints: complaints from before.

    Raises:
        RecipeError: a value is invalid; the message lists all complaints with their locations.
    """
    complaints = [*complaints, *_infinite(values, ())]
    built: T | None = None
    try:
        # As JSON, since pydantic's strict mode for Python values refuses a list for a tuple.
        built = _adapter(kind).validate_json(json.dumps(values), strict=True, extra="forbid")
    except ValidationError as error:
        complaints += [_complaint(details, kind) for details in error.errors(include_url=False)]
    if built is not None:
        complaints += [(tuple(key.split(".")), message) for key, message in rules(built)]
    if built is None or complaints:
        order = list(origins)  # the order of the file, then of the overrides
        complaints.sort(key=lambda item: order.index(_written(item[0], origins)))
        raise RecipeError("\n".join(_line(path, message, origins) for path, message in complaints))
    return built


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML, with defaults, in field order; reading it returns an equal recipe."""
    return dump_yaml(dataclasses.asdict(recipe))


def recipe_hash(recipe: Recipe) -> str:
    """The SHA-256 of the resolved recipe; retired keys do not change it."""
    sections = hashed_values(recipe).items()
    return sha256_text(
        dump_yaml(
            {
                name: restore_retired(name, value) if isinstance(value, dict) else value
                for name, value in sections
            }
        )
    )


def differing_keys(a: Recipe, b: Recipe) -> list[tuple[str, Any, Any]]:
    """The dotted keys in which two recipes differ, with both values, in field order."""
    return list(_differences(dataclasses.asdict(a), dataclasses.asdict(b), ""))


def _differences(a: Any, b: Any, prefix: str) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(a, dict) and isinstance(b, dict):
        for key in {**a, **b}:
            yield from _differences(a.get(key), b.get(key), f"{prefix}.{key}" if prefix else str(key))
    elif a != b and not (a != a and b != b):  # NaN is not itself
        yield prefix, a, b


def recipe_keys(section: type = Recipe, prefix: str = "") -> list[str]:
    """Every dotted key of a recipe, e.g. ``train.epochs``, and the sections."""
    keys: list[str] = []
    for name, hint in _hints(section).items():
        keys.append(prefix + name)
        inner = section_of(hint)
        if inner is not None:
            keys += recipe_keys(inner, f"{prefix}{name}.")
    return keys


def section_of(hint: Any) -> type | None:
    """The section that a field's type names (``Train``, ``Lora | None``), or None for a plain value."""
    types = [candidate for candidate in (hint, *typing.get_args(hint)) if isinstance(candidate, type)]
    return next((candidate for candidate in types if dataclasses.is_dataclass(candidate)), None)


@cache
def _hints(section: type) -> Mapping[str, Any]:
    return typing.get_type_hints(section)


@cache
def _adapter(kind: type) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def _default_teacher(values: dict[str, Any]) -> None:
    """Makes the student's starting weights the teacher if the recipe names no teacher model."""
    student, teacher = values.get("student"), values.setdefault("teacher", {})
    start = student.get("model") if isinstance(student, dict) else None
    if isinstance(teacher, dict) and "model" not in teacher and start is not None:
        teacher["model"] = start
    if not teacher:
        del values["teacher"]  # so that it is missing, not empty


def _default_sampling(values: dict[str, Any]) -> None:
    """Samples local teachers from their own distribution; an API has defaults of its own."""
    others = values.get("teachers")
    teachers = [values.get("teacher"), *(others if isinstance(others, list) else [])]
    models = [teacher.get("model") for teacher in teachers if isinstance(teacher, dict)]
    collect = values.setdefault("collect", {})
    if isinstance(collect, dict) and not any(str(model).startswith("api:") for model in models):
        for key in ("temperature", "top_p"):
            if collect.get(key) is None:
                collect[key] = 1.0
    if not collect:
        del values["collect"]


# Overrides


def apply_override(override: str, values: dict[str, Any], origins: Origins) -> None:
    """Applies ``section.field=value`` to ``values``, and records its location in ``origins``."""
    key, equals, text = override.partition("=")
    option = f"--{key}"
    if not equals or not all(key.split(".")):
        raise RecipeError(f"{option}: an override is `--section.field value`, e.g. `--train.epochs 2`")
    path = tuple(key.split("."))
    if not text.strip():
        value, value_origins = None, {(): option}
    elif text.lstrip()[0] in NOT_YAML:
        value, value_origins = text.strip(), {(): option}
    else:
        value, value_origins = read_yaml(text, option)
    section = values
    for depth, name in enumerate(path[:-1], start=1):
        if not isinstance(section.get(name), dict):
            section[name] = {}
            origins[path[:depth]] = option
        section = section[name]
    section[path[-1]] = value
    for old in [known for known in origins if known[: len(path)] == path]:
        del origins[old]
    origins.update({path + inner: option for inner in value_origins})


# Complaints


def _line(path: KeyPath, message: str, origins: Origins) -> str:
    origin, key = origins[_written(path, origins)], _dotted(path)
    # An override already names its key; the key of a study's arm has a prefix there.
    named = origin == f"--{key}" or (origin.startswith("--") and origin.endswith(f".{key}"))
    return f"{origin}: {message}" if named else f"{origin}: {key}: {message}"


def _written(path: KeyPath, origins: Origins) -> KeyPath:
    """The longest prefix of ``path`` with a known location."""
    while path not in origins:
        path = path[:-1]
    return path


def _dotted(path: KeyPath) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).lstrip(".")


def _infinite(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """Complaints about numbers that are not finite, except in a model's own configuration."""
    if path == ("student", "config"):
        return
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _infinite(inner, (*path, key))
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _infinite(inner, (*path, number))
    elif isinstance(value, float) and not math.isfinite(value):
        yield path, f"must be a finite number, not {_show(value)}"


def _complaint(details: ErrorDetails, kind: type) -> tuple[KeyPath, str]:
    path, shown, limits = details["loc"], _show(details["input"]), details.get("ctx", {})
    match details["type"]:
        case "unexpected_keyword_argument":
            return path, _unknown_key(path, kind)
        case "missing":
            return path, "missing"
        case "literal_error":
            choices = [str(choice) for choice in typing.get_args(_hint_at(path, kind))]
            near = did_you_mean(str(details["input"]), choices)
            listed = ", ".join(f"`{choice}`" for choice in choices)
            return path, f"must be one of {listed}, not {shown}" + (f". {near}" if near else "")
        case "dataclass_type":
            return path, f"must be a mapping of keys, not {shown}"
        case "greater_than":
            return path, f"must be greater than {limits['gt']:g}, not {shown}"
        case "greater_than_equal":
            return path, f"must be at least {limits['ge']:g}, not {shown}"
        case "less_than":
            return path, f"must be less than {limits['lt']:g}, not {shown}"
        case "less_than_equal":
            return path, f"must be at most {limits['le']:g}, not {shown}"
        case "too_short" | "string_too_short":
            return path, "must not be empty"
        case other if other in _EXPECTED:
            return path, f"must be {_EXPECTED[other]}, not {shown}"
        case _:
            return path, f"{details['msg']}, not {shown}"


_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "string_type": "text",
    "bool_type": "`true` or `false`",
    "tuple_type": "a list",
    "dict_type": "a mapping of keys",
}


def _unknown_key(path: KeyPath, kind: type) -> str:
    section, word = ".".join(key for key in path[:-1] if isinstance(key, str)), str(path[-1])
    siblings = list(_hints(section_of(_hint_at(path[:-1], kind)) or kind))
    near = nearest(word, siblings)
    near = f"{section}.{near}".lstrip(".") if near else nearest(word, recipe_keys(kind))
    if near is None:
        return "unknown key; known here: " + ", ".join(siblings)
    return f"unknown key. Did you mean `{near}`?"


def _hint_at(path: KeyPath, kind: type) -> Any:
    """The type of the value at ``path`` in a dataclass ``kind``."""
    hint: Any = kind
    for key in path:
        arguments = typing.get_args(hint)
        if isinstance(key, int):
            hint = arguments[0]
        elif typing.get_origin(hint) is dict:
            hint = arguments[1]
        else:
            hint = _hints(section_of(hint) or kind)[str(key)]
    return hint


def _show(value: Any) -> str:
    if value is None:
        return "empty (null)"
    if isinstance(value, dict):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    text = json.dumps(value, ensure_ascii=False) if isinstance(value, str | bool) else str(value)
    return text if len(text) <= 60 else text[:57] + "..."
