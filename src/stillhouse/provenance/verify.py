"""Is a run still what its manifest recorded? Rechecks every hash that can be computed again.

Finds what was changed without the manifest being changed with it. Files that no stage
recorded (checkpoints, a journal, a stranger's) are not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stillhouse.errors import IntegrityError, StillhouseError
from stillhouse.provenance.manifest import MANIFEST, RECIPE_INPUT, STAGE_INPUT, Manifest, recipe_section_hash
from stillhouse.recipe import Recipe
from stillhouse.recipe.load import load_recorded_recipe
from stillhouse.recipe.retired import RetiredValues


@dataclass(frozen=True)
class RunVerification:
    """The outcome of a check."""

    checked: int
    """Files whose content was compared."""
    differences: list[str]
    """One line each, in the order of the stages."""


def verify_run(run_dir: str | Path) -> RunVerification:
    """Compares a run's directory with its manifest.

    For each stage in turn: whether the recipe's sections are those it was made with, whether what it took
    from earlier stages is what those stages left, and whether its files are there with size and content as
    recorded.

    Raises:
        IntegrityError: there is no manifest, or it is malformed.
    """
    directory = Path(run_dir)
    if not (directory / MANIFEST).is_file():
        raise IntegrityError(
            f"{directory} holds no {MANIFEST}, so nothing can be compared",
            hint="Name the directory of a run, e.g. runs/quickstart.",
        )
    manifest = Manifest.load(directory)
    recipe, differences = _recipe(directory, manifest)
    files: set[str] = set()
    for stage, record in manifest.stages.items():
        differences += _inputs(manifest, stage, recipe)
        for output in record.outputs:
            files.add(output.path)
            if found := output.difference(directory):
                differences.append(f"{found} (stage {stage})")
    return RunVerification(len(files), differences)


def _recipe(directory: Path, manifest: Manifest) -> tuple[tuple[Recipe, RetiredValues] | None, list[str]]:
    """The run's recipe, where a stage recorded hashes of its sections; and what keeps it from being read."""
    if not any(
        name.startswith(RECIPE_INPUT) for record in manifest.stages.values() for name in record.inputs
    ):
        return None, []
    path = directory / "recipe.yaml"
    if not path.is_file():
        return None, ["recipe.yaml is missing"]
    try:
        return load_recorded_recipe(path), []
    except (StillhouseError, OSError) as error:
        return None, [f"recipe.yaml cannot be read: {error}"]


def _inputs(manifest: Manifest, stage: str, recipe: tuple[Recipe, RetiredValues] | None) -> Iterator[str]:
    for name, value in manifest.stages[stage].inputs.items():
        if name.startswith(STAGE_INPUT):
            earlier = name.removeprefix(STAGE_INPUT)
            if earlier not in manifest.stages:
                yield f"stage {stage} was made from stage {earlier}, which is not in the manifest"
            elif value != manifest.digest(earlier):
                yield f"stage {stage} was made from other outputs of stage {earlier} than are recorded now"
        elif recipe is not None and name.startswith(RECIPE_INPUT):
            section = name.removeprefix(RECIPE_INPUT)
            if _section_hash(*recipe, section) != value:
                yield f"recipe.yaml: {section} is not what stage {stage} was made with"


def _section_hash(recipe: Recipe, retired: RetiredValues, section: str) -> str | None:
    """None for a section that recipes do not have."""
    try:
        return recipe_section_hash(recipe, section, retired)
    except AttributeError:
        return None
