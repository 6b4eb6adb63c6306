"""``still init``: writes a recipe and questions to start with."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from stillhouse.cli.options import Output, OutputFlags
from stillhouse.console import console
from stillhouse.errors import UsageError

EXAMPLES = """\
Examples:
  still init
  still init my-project"""


def init(
    directory: Annotated[Path, Parameter(metavar="DIR")] = Path(),
    /,
    *,
    output: OutputFlags = Output(),  # noqa: B008  frozen
) -> None:
    """Write a recipe and a file of questions to start with.

    The recipe runs as it is, without a network: in minutes on two cores. Nothing is
    overwritten.

    Parameters
    ----------
    directory
        The directory to write recipe.yaml and questions.jsonl to.
    """
    from stillhouse.corpus.prompts.packaged import packaged_file
    from stillhouse.files import atomic_write, storage_errors
    from stillhouse.models.embedded import embedded_path
    from stillhouse.recipe.shipped import shipped_recipes

    contents = {
        "recipe.yaml": resources.files("stillhouse.cli").joinpath("start.yaml").read_text("utf-8"),
        "questions.jsonl": packaged_file("mmlu").read_text("utf-8"),
    }
    with storage_errors(directory):
        existing = [str(directory / name) for name in contents if (directory / name).exists()]
    if existing:
        raise UsageError(
            f"{' and '.join(existing)} exist{'s' if len(existing) == 1 else ''} already",
            hint="Name another directory, e.g. `still init my-project`; nothing is overwritten.",
        )
    for name, text in contents.items():
        atomic_write(directory / name, text)
    recipe = directory / "recipe.yaml"
    steps = [
        *([] if embedded_path("smollm2") else [("still fetch-embedded", "the recipe's teacher, 93 MB")]),
        (f"still plan {recipe}", "time, memory and terms"),
        (f"still run {recipe}", "corpus, student, report"),
    ]
    console.data({"files": [str(directory / name) for name in contents], "next": [s for s, _ in steps]})
    if console.json:
        return
    for name, what in (("recipe.yaml", "what to do"), ("questions.jsonl", "281 questions for the teacher")):
        print(f"{directory / name}: {what}")
    print("Next:")
    width = max(len(command) for command, _ in steps)
    for command, what in steps:
        print(f"  {command:{width}}  {what}")
    console.hint(f"recipes to run by name or to copy from: {', '.join(shipped_recipes())}")
