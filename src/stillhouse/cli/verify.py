"""``still verify``: whether a run's files are still those that its manifest recorded."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from stillhouse.cli.options import Output, OutputFlags
from stillhouse.console import console
from stillhouse.errors import IntegrityError, UsageError

MOST_SHOWN = 20
EXAMPLES = """\
Examples:
  still verify runs/quickstart
  still verify runs/quickstart --json"""


def verify(
    directory: Annotated[Path, Parameter(metavar="DIR")],
    /,
    *,
    output: OutputFlags = Output(),  # noqa: B008  frozen
) -> None:
    """Check a run's files against its manifest; name what differs.

    Parameters
    ----------
    directory
        A run's directory.
    """
    from stillhouse.provenance import verify_run

    if not (directory / "manifest.json").is_file():
        raise UsageError(f"{directory} is not a run: it holds no manifest.json")
    result = verify_run(directory)
    found = {"directory": str(directory), "checked": result.checked, "differences": result.differences}
    if result.differences:
        shown = [f"{directory}: {difference}" for difference in result.differences[:MOST_SHOWN]]
        if more := len(result.differences) - len(shown):
            shown.append(f"and {more} more; --json lists all")
        error = IntegrityError(
            "\n".join(shown), hint="`still run` with the same recipe makes again what is missing or changed."
        )
        error.report = found
        raise error
    console.data(found)
    if not console.json:
        print(f"{directory}: {result.checked} files are as recorded")
