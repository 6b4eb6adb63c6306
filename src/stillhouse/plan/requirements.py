"""Lists everything that a recipe needs and this machine does not have, in one message.

Packages of extras, the embedded model, model directories and prompt files. Nothing is loaded. What a model
or file contains is checked later, by :mod:`.preflight`.
"""

from __future__ import annotations

import glob
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from stillhouse.errors import MissingExtraError, ModelNotFoundError, StillhouseError
from stillhouse.models import parse_reference
from stillhouse.models.embedded import EMBEDDED, embedded_path
from stillhouse.recipe import Recipe
from stillhouse.recipe.paths import is_path, map_paths
from stillhouse.recipe.teachers import all_teachers
from stillhouse.verifiers.scoring import REQUIRED_PACKAGES

FETCH = "still fetch-embedded"


@dataclass(frozen=True)
class Missing:
    """Something that a recipe needs and that is not here."""

    key: str
    """The key of the recipe that needs it."""
    what: str
    extra: str | None = None
    """The extra that installs it."""
    fetch: bool = False
    """Whether `still fetch-embedded` brings it."""
    error: StillhouseError | None = None
    """What opening it raises; for a file or directory that only the user has."""


def require_available(recipe: Recipe, *, student: bool = True) -> None:
    """Raises one error for everything that is missing.

    Args:
        student: whether the student is built and trained, not only the corpus collected.

    Raises:
        MissingExtraError: something that a command installs is missing; the hint is that command.
        StillhouseError: a single model or file does not exist, as opening it raises.
    """
    raise_missing(list(missing(recipe, student=student)))


def raise_missing(lacking: list[Missing]) -> None:
    """Raises the error of :func:`require_available`, if anything is missing."""
    lacking = list({(item.key, item.what): item for item in lacking}.values())
    if len(lacking) == 1 and lacking[0].error is not None:
        raise lacking[0].error
    if lacking:
        lines = "\n".join(f"  {item.key}: {item.what}" for item in lacking)
        own = [str(item.error.hint) for item in lacking if item.error is not None and item.error.hint]
        command = install_command(lacking)
        raise MissingExtraError(
            f"this recipe needs what is not on this machine:\n{lines}",
            hint=" ".join([*([command] if command else []), *dict.fromkeys(own)]) or None,
        )


def install_command(lacking: Iterable[Missing]) -> str:
    """The one command that installs what can be installed; empty if nothing can."""
    lacking = list(lacking)
    extras = sorted({item.extra for item in lacking if item.extra})
    commands = []
    if extras:
        # `uv tool` installs exactly the extras that it is given
        names, tool = (["all"], "uv tool install") if "/uv/tools/" in sys.prefix else (extras, _pip())
        commands.append(f'{tool} "stillhouse[{",".join(names)}]"')
    if any(item.fetch for item in lacking):
        commands.append(FETCH)
    return " && ".join(commands)


def _pip() -> str:
    return "pip install" if importlib.util.find_spec("pip") else "uv pip install"


def missing(recipe: Recipe, *, student: bool = True) -> Iterator[Missing]:
    """Everything that ``recipe`` needs and that is not here."""
    yield from _models(recipe, student)
    yield from _packages(recipe, student)
    yield from _files(recipe)


def _models(recipe: Recipe, student: bool) -> Iterator[Missing]:
    references = {"teacher.model": recipe.teacher.model}
    references |= {f"teachers[{n}].model": teacher.model for n, teacher in enumerate(recipe.teachers)}
    if student:
        references |= {f"student.{key}": getattr(recipe.student, key) or "" for key in ("model", "tokenizer")}
    seen: set[str] = set()
    for key, reference in references.items():
        if not reference or reference in seen:
            continue
        seen.add(reference)
        if reference.startswith("embedded:") and (name := reference.partition(":")[2]) in EMBEDDED:
            if embedded_path(name) is None:
                yield Missing(key, f"the embedded model {name}", fetch=True)
            is_gguf = True
        else:
            try:
                is_gguf = parse_reference(reference).is_gguf
            except ModelNotFoundError as error:
                yield Missing(key, str(error), error=error)
                continue
        if is_gguf and not _installed("gguf"):
            yield Missing(key, "the package gguf, to read GGUF files", extra="gguf")
    if any(t.backend == "llama.cpp" for t in all_teachers(recipe)) and not _installed("xllamacpp"):
        yield Missing("teacher.backend", "the package xllamacpp, for llama.cpp", extra="gguf")


def _packages(recipe: Recipe, student: bool) -> Iterator[Missing]:
    if student and recipe.student.lora is not None and not _installed("peft"):
        yield Missing("student.lora", "the package peft", extra="lora")
    for tracker in recipe.train.trackers if student else ():
        if not _installed(tracker):
            yield Missing("train.trackers", f"the package {tracker}", extra="track")
    for number, verifier in enumerate(recipe.verifiers):
        package = REQUIRED_PACKAGES.get(verifier.kind)
        if package is not None and not _installed(package):
            yield Missing(f"verifiers[{number}].kind", f"the package {package}", extra="reasoning")
    if recipe.prompts.source.startswith("reasoning_gym:") and not _installed("reasoning_gym"):
        yield Missing("prompts.source", "the package reasoning_gym", extra="reasoning")


def _files(recipe: Recipe) -> Iterator[Missing]:
    """Prompt files and files of contexts; a missing one raises at reading, with the same words."""
    from stillhouse.errors import CorpusError

    texts: list[tuple[str, str]] = []

    def collect(key: tuple[str | int, ...], text: str) -> str:
        if key[-1] not in ("model", "tokenizer"):
            texts.append((".".join(map(str, key)), text))
        return text

    map_paths(Recipe, recipe, collect)
    for key, text in texts:
        if is_path(text) and not Path(text).exists() and not (glob.has_magic(text) and glob.glob(text)):  # noqa: PTH207
            yield Missing(key, f"{text}: no such file", error=CorpusError(f"{key}: {text}: no such file"))


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
