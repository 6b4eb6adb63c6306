"""``still models``: lists the models on this machine."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from stillhouse.cli.options import Output, OutputFlags
from stillhouse.console import console
from stillhouse.errors import UsageError
from stillhouse.pages.numbers import format_bytes, format_count

USAGE = "Usage: still models [OPTIONS] [DIR]"
EXAMPLES = """\
Examples:
  still models
  still models runs
  still models ~/models --json"""


def models(
    directory: Annotated[Path, Parameter(metavar="DIR")] = Path(),
    /,
    *,
    output: OutputFlags = Output(),  # noqa: B008  frozen
) -> None:
    """List the models on this machine, each as other commands name it.

    Lists the students of runs, model directories and GGUF files below DIR, models in the cache of the
    Hub, and embedded models. `can` says what works here: `logits` means that a model can also teach, be
    trained and be compared.

    Parameters
    ----------
    directory
        The directory to search, to a depth of five folders (default: the working directory).
    """
    directory = directory.expanduser()
    if not directory.is_dir():
        raise UsageError(f"{directory} is not a directory")
    from stillhouse.models import list_models

    with console.progress("reading models", None):
        found = list_models(directory)
    rows = [
        [
            model.reference,
            model.kind,
            "–" if model.size_bytes is None else format_bytes(model.size_bytes),
            "–" if model.parameters is None else format_count(model.parameters),
            "–" if model.context_length is None else f"{model.context_length:,}",
            model.problem or ", ".join(model.can),
        ]
        for model in found
    ]
    console.data([dataclasses.asdict(model) for model in found])
    if rows:
        console.table("", ["model", "kind", "size", "parameters", "context", "can"], rows)
    else:
        console.info("no model found")
        console.hint("`still fetch-embedded` downloads a small one; then: still chat embedded:smollm2")
