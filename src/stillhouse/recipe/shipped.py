"""The recipes that come with the package, by name: `still run quickstart`."""

from __future__ import annotations

from pathlib import Path

SUFFIX = ".yaml"


def shipped_directory() -> Path:
    """The directory of the recipes: inside an installed package, or at the root of the repository."""
    package = Path(__file__).parents[1]
    installed = package / "recipes"
    return installed if installed.is_dir() else package.parents[1] / "recipes"


def shipped_recipes() -> dict[str, Path]:
    """Files of recipes and studies by name: `quickstart`, `r1-mini/study`."""
    directory = shipped_directory()
    return {
        path.relative_to(directory).with_suffix("").as_posix(): path
        for path in sorted(directory.rglob(f"*{SUFFIX}"))
    }


def find_recipe(path: Path) -> Path:
    """The file that ``path`` names: itself if it exists, else the shipped recipe of this name, if any.

    `recipes/quickstart.yaml`, as in the repository, names the shipped recipe, too, and `r1-mini` its study.
    """
    if path.is_file():
        return path
    name = path.as_posix().removesuffix(SUFFIX).removeprefix("recipes/")
    shipped = shipped_recipes()
    return shipped.get(name) or shipped.get(f"{name}/study") or path
