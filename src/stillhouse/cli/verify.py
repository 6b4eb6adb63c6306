"""``still verify``: checks a run's files against its manifest."""

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
    """Check a run's files against its manifest; list the differences.

    Parameters
    ----------
    directory
        A run's directory.
    """
    from stillhouse.provenance import verify_run

    if not (directory / "manifest.json").is_file():
        hint = "Name the directory of a run, e.g. runs/quickstart."
        if (directory / "evidence.json").is_file():
            hint = f"It is a bundle of evidence: still trace verify {directory}."
        raise UsageError(f"{directory} is not a run: it contains no manifest.json", hint=hint)
    result = verify_run(directory)
    report = {"directory": str(directory), "checked": result.checked, "differences": result.differences}
    if result.differences:
        lines = [f"{directory}: {difference}" for difference in result.differences[:MOST_SHOWN]]
        if more := len(result.differences) - len(lines):
            lines.append(f"and {more} more; --json lists all")
        error = IntegrityError(
            "\n".join(lines), hint="`still run` with the same recipe restores what is missing or changed."
        )
        error.report = report
        raise error
    if result.checked == 0:
        raise UsageError(
            f"{directory}: no stage of this run has finished, so there is nothing to check",
            hint="`still run` with the same recipe goes on with it.",
        )
    console.data(report)
    console.text(f"{directory}: {result.checked} files match the manifest")
