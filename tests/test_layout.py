"""The layout of the package: a newcomer finds a file by its folder, and a class by its name."""

import ast
import importlib
import re
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "stillhouse"
SOURCES = sorted(PACKAGE.rglob("*.py"))
INTERFACES = sorted(
    ".".join(stub.parent.relative_to(PACKAGE.parent).parts) for stub in PACKAGE.rglob("__init__.pyi")
)


def test_a_class_name_occurs_once():
    names = Counter(
        node.name
        for source in SOURCES
        for node in ast.walk(ast.parse(source.read_text("utf-8")))
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_no_folder_is_a_drawer():
    """The verbs are a list, a file each; elsewhere a folder with more than 14 files is divided."""
    sizes = Counter(source.parent for source in SOURCES if source.name != "__init__.py")
    assert {str(folder): size for folder, size in sizes.items() if size > 14 and folder.name != "cli"} == {}


@pytest.mark.parametrize("name", INTERFACES)
def test_a_package_lists_its_public_names_and_has_them(name):
    package = importlib.import_module(name)
    assert dir(package) == sorted(package.__all__)
    for public in package.__all__:
        assert getattr(package, public) is not None


def test_the_architecture_page_names_files_that_exist():
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    files = re.findall(r"`((?:[a-z_]+/)+[a-z_0-9]*(?:\.py|\.yaml)?)`", page)
    assert len(files) > 15
    for file in files:
        assert (PACKAGE / file).exists() or (ROOT / file).exists(), file


def test_the_picture_shows_the_layers_that_are_checked():
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    checked = [sorted(re.findall(r"stillhouse\.(\w+)", layer)) for layer in layers]
    picture = (ROOT / "docs" / "architecture.svg").read_text("utf-8")
    drawn: dict[str, list[str]] = {}
    for y, name in re.findall(r'y="(\d+)" class="name"[^>]*>(\w+)<', picture):
        drawn.setdefault(y, []).append(name)
    # In a row of boxes the names are a little higher; the rows come in order.
    assert [sorted(names) for names in drawn.values()] == checked
    packages = {path.name for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert packages <= {name for row in checked for name in row}
