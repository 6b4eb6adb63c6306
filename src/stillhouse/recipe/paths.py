"""Paths in recipes, studies and trace plans: relative to the file that names them.

A value from the command line is relative to the working directory. Earlier versions resolved every path
against the working directory; a path that exists only there still works, with a warning.

Fields that hold paths are marked with :class:`.field_types.HoldsPath`. A resolved path is relative to the
working directory if it is below it, and absolute otherwise, so it never contains `..`. The recipe in a run's
directory holds paths relative to that directory instead (:func:`record_paths`).
"""

from __future__ import annotations

import dataclasses
import glob
import os
import re
import typing
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union

from stillhouse.console import console
from stillhouse.recipe.field_types import HoldsPath
from stillhouse.recipe.yaml_lines import KeyPath, Origins

Section = TypeVar("Section")
ChangeText = Callable[[KeyPath, str], str]

_SCHEME = re.compile(r"[A-Za-z][\w+.-]+:")
"""`hub:`, `api:`, `package:` … A single letter is a drive."""
_VARIABLE = "{"
"""`{data}` and `{runs}` of a study are directories of its own."""


def resolve_paths(kind: type, values: Section, origins: Origins, directory: Path) -> Section:
    """The values of a section with their paths as this process opens them.

    Args:
        kind: the dataclass whose keys ``values`` has.
        values: plain nested values as read; not modified.
        origins: the location of each value; an override starts with ``--``.
        directory: that of the file.
    """

    def change(key: KeyPath, text: str) -> str:
        while key not in origins:
            key = key[:-1]
        if origins[key].startswith("--"):
            return text
        resolved, is_beside = resolve_path(text, directory)
        if not is_beside:
            beside = os.path.relpath(text, directory)
            console.warn(
                f"{origins[key]}: {text} is in the working directory, not beside {_file(origins[key])}. "
                f"Paths are relative to the file that names them: write {beside}"
            )
        return resolved

    return map_paths(kind, values, change)


def resolve_path(text: str, directory: Path) -> tuple[str, bool]:
    """A path as this process opens it, and whether it is relative to ``directory``.

    It is relative to the working directory instead if it exists only there.
    """
    if not _is_relative(text) or _absolute(directory) == Path.cwd():
        return text, True
    beside = directory / text
    if not _exists(beside) and _exists(Path(text)):
        return text, False
    return short_path(beside), True


def short_path(path: str | Path) -> str:
    """The path relative to the working directory if it is below it, else absolute; without `..`."""
    absolute = _absolute(path)
    return str(absolute.relative_to(Path.cwd()) if absolute.is_relative_to(Path.cwd()) else absolute)


def shorten_paths(section: Section) -> Section:
    """A section whose relative paths contain no `..`; other paths stay as written."""

    def change(_: KeyPath, text: str) -> str:
        return short_path(text) if _is_relative(text) and os.pardir in Path(text).parts else text

    return map_paths(type(section), section, change)


def record_paths(section: Section, directory: Path, before: Section | None) -> Section:
    """A resolved section as it is recorded in ``directory``, with paths relative to that directory.

    Args:
        before: what the directory holds, if anything. A path that is still the same one is written as it is
            there, so that hashes of the section do not change.
    """
    texts_before: dict[KeyPath, str] = {}

    def collect(key: KeyPath, text: str) -> str:
        texts_before[key] = text
        return text

    if before is not None:
        map_paths(type(section), before, collect)

    def change(key: KeyPath, text: str) -> str:
        old = texts_before.get(key)
        if old is not None and (
            _same(resolve_path(old, directory)[0], text)
            # an earlier version wrote paths relative to the working directory; the file may be gone since
            or (_same(old, text) and not _exists(directory / old))
        ):
            return old
        if not _is_relative(text):
            return text
        path = _absolute(text)
        # Without a common parent the two are on different disks, or belong to different people.
        if path.parts[:2] != _absolute(directory).parts[:2]:
            return str(path)
        return os.path.relpath(path, directory)

    return map_paths(type(section), section, change)


def map_paths(kind: type, value: Section, change: ChangeText, key: KeyPath = ()) -> Section:
    """A section with ``change(key, text)`` in place of each path in it.

    Args:
        kind: the section's dataclass.
        value: an instance of it, or a plain mapping of its keys (unknown or invalid ones stay).
    """
    plain: Any = value
    is_mapping = isinstance(plain, Mapping)
    before = {name: plain.get(name) if is_mapping else getattr(plain, name) for name in _hints(kind)}
    after = {name: _map(hint, before[name], change, (*key, name)) for name, hint in _hints(kind).items()}
    changed = {name: inner for name, inner in after.items() if inner != before[name]}
    if is_mapping:
        return {**plain, **changed}  # pyright: ignore[reportReturnType]
    return dataclasses.replace(plain, **changed) if changed else value


def _map(hint: Any, value: Any, change: ChangeText, key: KeyPath) -> Any:
    """A value of the type ``hint`` with its paths changed."""
    arguments = typing.get_args(hint)
    for note in getattr(hint, "__metadata__", ()):
        if isinstance(note, HoldsPath):
            return _map_text(note.prefix, value, change, key)
        if dataclasses.is_dataclass(note) and isinstance(note, type):  # the keys of a plain mapping
            return _map(note, value, change, key)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return map_paths(hint, value, change, key) if isinstance(value, Mapping | hint) else value
    if isinstance(value, list | tuple) and arguments:
        return type(value)(_map(arguments[0], inner, change, (*key, i)) for i, inner in enumerate(value))
    if isinstance(value, Mapping) and typing.get_origin(hint) is dict:
        return {name: _map(arguments[1], inner, change, (*key, name)) for name, inner in value.items()}
    for inner in arguments if typing.get_origin(hint) in (Annotated, Union, UnionType) else ():
        value = _map(inner, value, change, key)
    return value


def _map_text(prefix: str, value: Any, change: ChangeText, key: KeyPath) -> Any:
    if not isinstance(value, str) or not value.startswith(prefix):
        return value
    return prefix + change(key, value.removeprefix(prefix))


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def is_path(text: str) -> bool:
    """Whether a text names a file or directory here, rather than a model hub, an API or a package."""
    return bool(text) and "\0" not in text and not text.startswith(_VARIABLE) and not _SCHEME.match(text)


def _is_relative(text: str) -> bool:
    return is_path(text) and not (Path(text).is_absolute() or text.startswith("~"))


def _exists(path: Path) -> bool:
    try:
        return path.exists() or (glob.has_magic(str(path)) and any(glob.iglob(str(path))))  # noqa: PTH207  Path.glob needs a relative pattern
    except (OSError, ValueError):  # a name that is too long, or no name
        return False


def _same(one: str, other: str) -> bool:
    if one == other:
        return True
    return not (_SCHEME.match(one) or _SCHEME.match(other)) and _absolute(one) == _absolute(other)


def _absolute(path: str | Path) -> Path:
    """An absolute path without `..`; links stay."""
    return Path(os.path.normpath(Path(path).absolute()))


def _file(origin: str) -> str:
    """The file of a location ``file:line``."""
    return Path(origin.rpartition(":")[0] or origin).name
