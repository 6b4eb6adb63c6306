"""Options and arguments that several verbs share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from stillhouse.cli.overrides import OPTION


@dataclass(frozen=True)
class Output:
    """Output options of a verb; :func:`stillhouse.cli.main` applies them before it parses the rest."""

    json: Annotated[bool, Parameter(negative="", show_default=False)] = False
    """Print the result as JSON on stdout."""
    quiet: Annotated[bool, Parameter(negative="", show_default=False)] = False
    """Suppress progress and hints."""
    debug: Annotated[bool, Parameter(negative="", show_default=False)] = False
    """Show the traceback of an error."""


OutputFlags = Annotated[Output, Parameter(name="*")]
Overrides = Annotated[
    tuple[str, ...],
    Parameter(
        name=OPTION,
        negative="",
        metavar="VALUE",
        show_default=False,
        help="Override any value of the recipe, e.g. --train.epochs 2 (the value is YAML).",
    ),
]
RunDirectory = Annotated[
    Path | None, Parameter(name="--out", metavar="DIR", help="The run's directory (default: runs/NAME).")
]
AcceptTerms = Annotated[
    str | None,
    Parameter(metavar="REASON", help="Accept unknown terms of the teacher; the reason is recorded."),
]
Restart = Annotated[
    bool,
    Parameter(negative="", show_default=False, help="Start over; an existing run is moved to DIR.1."),
]
RecipeFile = Annotated[
    Path, Parameter(metavar="RECIPE", help="A YAML file, or the name of a packaged recipe, e.g. quickstart.")
]
