"""Checks the wheel and the sdist in ``dist``: ``python tools/check_release.py``, run by ``make release``.

The wheel must contain every tracked file of src/stillhouse, the recipes, and nothing else. The sdist must
contain only tracked files, none of them large. Then the wheel is installed into an empty directory, and a
Python process outside the repository imports every public name, uses each kind of data file and reads every
recipe. Dependencies come from the environment that runs this script.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parent.parent
MOST_BYTES = 500_000
"""Largest file in the sdist; the largest today is docs/report.png with 350 kB."""
NEEDED_TO_BUILD = {"pyproject.toml", "README.md", "LICENSE"}

PROBE = """
import importlib, pkgutil, sys
from importlib import resources
from pathlib import Path

from jinja2 import Environment, PackageLoader

import stillhouse
from stillhouse.provenance import all_terms

assert Path(stillhouse.__file__).is_relative_to(sys.argv[1]), stillhouse.__file__
packages = [m.name for m in pkgutil.walk_packages(stillhouse.__path__, "stillhouse.") if m.ispkg]
lazy = [name for name in packages if resources.files(name).joinpath("__init__.pyi").is_file()]
names = [(package, name) for package in map(importlib.import_module, lazy) for name in package.__all__]
for package, name in names:
    getattr(package, name)
assert len(lazy) > 10 and len(names) > 100, (len(lazy), len(names))

from stillhouse.corpus import load_prompts
from stillhouse.recipe.load import load_recipe
from stillhouse.recipe.shipped import shipped_recipes
from stillhouse.recipe.study import is_study, load_study

assert all_terms()
for file in ("index.html", "vendor/katex.min.js", "vendor/fonts/KaTeX_Main-Regular.woff2"):
    assert resources.files("stillhouse.serve").joinpath("page", file).read_bytes()
assert len(load_prompts("package:mmlu")) == 281
assert {"quickstart", "r1-mini/study"} <= shipped_recipes().keys()
for recipe in shipped_recipes().values():
    assert recipe.is_relative_to(sys.argv[1]), recipe
    load_study(recipe) if is_study(recipe) else load_recipe(recipe)
for package, name in [
    ("pages", "page.css"),
    ("evaluate", "report.html.j2"),
    ("evaluate", "study.html.j2"),
    ("trace.report", "evidence.html.j2"),
]:
    PackageLoader(f"stillhouse.{package}", ".").get_source(Environment(), name)
"""


def main() -> None:
    wheel = _only("*.whl")
    sdist = _only("*.tar.gz")
    check_wheel(wheel)
    check_sdist(sdist)
    check_installed(wheel)
    check_changelog(wheel)
    for path in (wheel, sdist):
        print(f"{path.relative_to(ROOT)}: {path.stat().st_size / 1e3:,.0f} kB, complete")


def _only(pattern: str) -> Path:
    paths = list((ROOT / "dist").glob(pattern))
    if len(paths) != 1:
        sys.exit(f"dist contains {len(paths)} files {pattern} instead of one")
    return paths[0]


def tracked(folder: str = ".") -> set[str]:
    """Files below ``folder`` that git tracks, relative to the repository."""
    listing = subprocess.run(
        ["git", "ls-files", "-z", folder], cwd=ROOT, check=True, capture_output=True, text=True
    )
    return {name for name in listing.stdout.split("\0") if name}


def check_wheel(path: Path) -> None:
    with zipfile.ZipFile(path) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {str(PurePosixPath(name).relative_to("src")) for name in tracked("src")}
    expected |= {f"stillhouse/{name}" for name in tracked("recipes")}
    _require_same(path, files, expected)


def check_sdist(path: Path) -> None:
    with tarfile.open(path) as archive:
        sizes = {m.name.partition("/")[2]: m.size for m in archive.getmembers() if m.isfile()}
    sizes.pop("PKG-INFO")
    sizes.pop(".gitignore", None)  # hatchling always adds it
    needed = tracked("src") | NEEDED_TO_BUILD
    if missing := needed - sizes.keys():
        sys.exit(f"{path.name} lacks {', '.join(sorted(missing))}")
    if extra := sizes.keys() - tracked():
        sys.exit(f"{path.name} contains files that git does not track: {', '.join(sorted(extra))}")
    if large := [name for name, size in sizes.items() if size > MOST_BYTES]:
        sys.exit(f"{path.name} contains large files: {', '.join(large)}")


def check_changelog(wheel: Path) -> None:
    version = wheel.name.split("-")[1]
    if f"\n## {version} " not in (ROOT / "CHANGELOG.md").read_text("utf-8"):
        sys.exit(f"CHANGELOG.md has no section for version {version}")


def _require_same(path: Path, files: set[str], expected: set[str]) -> None:
    if missing := expected - files:
        sys.exit(f"{path.name} lacks {', '.join(sorted(missing))}")
    if extra := files - expected:
        sys.exit(f"{path.name} contains files that git does not track: {', '.join(sorted(extra))}")


def check_installed(wheel: Path) -> None:
    """Uses the installed wheel from a directory where the repository cannot be imported by accident."""
    with tempfile.TemporaryDirectory() as directory:
        target = Path(directory) / "site"
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target)]
        subprocess.run([*pip, str(wheel)], check=True)
        # PYTHONPATH precedes the editable installation of a development environment
        environment = {**os.environ, "PYTHONPATH": str(target)}
        probe, still = ["-c", PROBE, str(target)], ["-m", "stillhouse.cli"]
        for arguments in (
            probe,
            [*still, "--version"],
            [*still, "init"],
            [*still, "run", "r1-mini", "--dry-run"],
        ):
            subprocess.run([sys.executable, *arguments], check=True, cwd=directory, env=environment)


if __name__ == "__main__":
    main()
