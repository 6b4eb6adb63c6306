"""Types of recipe fields with their ranges."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

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
