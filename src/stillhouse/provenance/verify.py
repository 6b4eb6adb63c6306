"""Verifies a run against its manifest: recomputes every hash that can be computed again.

Detects changes that were made without changing the manifest. Files that no stage
recorded (checkpoints, a journal, files of others) are not checked.
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
    """The result of a verification."""

    checked: int
    """Number of files whose content was compared."""
    differences: list[str]
    """One line for each difference, in the order of the stages."""


def verify_run(run_dir: str | Path) -> RunVerification:
    """Compares a run's directory with its manifest.

    For each stage, compares the recipe's sections with those that the stage used, its inputs with the
    outputs of earlier stages, and its files with their recorded size and content.

    Raises:
        IntegrityError: the manifest is missing or invalid.
    """
    directory = Path(run_dir)
    if not (directory / MANIFEST).is_file():
        raise IntegrityError(
            f"{directory} contains no {MANIFEST}, so nothing can be compared",
            hint="Name the directory of a run, e.g. runs/quickstart.",
        )
    manifest = Manifest.load(directory)
    recipe, differences = _recipe(directory, manifest)
    files: set[str] = set()
    for stage, record in manifest.stages.items():
        differences += _inputs(manifest, stage, recipe)
        for output in record.outputs:
            files.add(output.path)
            if difference := output.difference(directory):
                differences.append(f"{difference} (stage {stage})")
    return RunVerification(len(files), differences)


def _recipe(directory: Path, manifest: Manifest) -> tuple[tuple[Recipe, RetiredValues] | None, list[str]]:
    """The run's recipe, if a stage recorded hashes of its sections, and the reason if it is unreadable."""
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
                yield f"stage {stage} used stage {earlier}, which is not in the manifest"
            elif value != manifest.digest(earlier):
                yield f"stage {stage} used other outputs of stage {earlier} than the manifest records now"
        elif recipe is not None and name.startswith(RECIPE_INPUT):
            section = name.removeprefix(RECIPE_INPUT)
            if _section_hash(*recipe, section) != value:
                yield f"recipe.yaml: {section} differs from what stage {stage} used"


def _section_hash(recipe: Recipe, retired: RetiredValues, section: str) -> str | None:
    """None for a section that recipes do not have."""
    try:
        return recipe_section_hash(recipe, section, retired)
    except AttributeError:
        return None
