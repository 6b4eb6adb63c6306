"""Types of recipe fields with their ranges, and fields that a later version added."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le, Lt, MinLen


@dataclass(frozen=True)
class HoldsPath:
    """Marks a text that may be a path, relative to the file that names it (:mod:`.paths`)."""

    prefix: str = ""
    """What precedes a path; a text without it is not one."""


Text = Annotated[str, MinLen(1)]
PathText = Annotated[str, MinLen(1), HoldsPath()]
"""A file, a directory, or a reference such as `hub:org/name`."""
PositiveInt = Annotated[int, Gt(0)]
NonNegativeInt = Annotated[int, Ge(0)]
PositiveFloat = Annotated[float, Gt(0)]
NonNegativeFloat = Annotated[float, Ge(0)]
Share = Annotated[float, Ge(0), Le(1)]
PositiveShare = Annotated[float, Gt(0), Le(1)]
ShareBelowOne = Annotated[float, Ge(0), Lt(1)]

ADDED = {"added": True}
"""Metadata of a field that came after version 0.2.0. Hashes leave such a field out while it has its default,
so that the finished stages of older runs stay finished."""


def hashed_values(value: Any) -> Any:
    """A recipe, a section or a value as plain data to hash: see :data:`ADDED`."""
    if isinstance(value, tuple):
        return tuple(map(hashed_values, value))
    if not dataclasses.is_dataclass(value):
        return value
    return {
        field.name: hashed_values(getattr(value, field.name))
        for field in dataclasses.fields(value)
        if not (field.metadata == ADDED and getattr(value, field.name) == _default(field))
    }


def _default(field: dataclasses.Field[Any]) -> Any:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
