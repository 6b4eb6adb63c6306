"""The release check rejects archives that lack a file or contain one too many."""

from __future__ import annotations

import importlib.util
import io
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
_spec = importlib.util.spec_from_file_location("check_release", ROOT / "tools" / "check_release.py")
assert _spec is not None and _spec.loader is not None
check_release = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(check_release)

TRACKED = {
    "src/stillhouse/a.py",
    "src/stillhouse/page.css",
    "recipes/a.yaml",
    "docs/a.md",
    *check_release.NEEDED_TO_BUILD,
}
WHEEL = ["stillhouse/a.py", "stillhouse/page.css", "stillhouse/recipes/a.yaml"]


@pytest.fixture(autouse=True)
def tracked_files(monkeypatch):
    def tracked(folder: str = ".") -> set[str]:
        return {name for name in TRACKED if folder == "." or name.startswith(f"{folder}/")}

    monkeypatch.setattr(check_release, "tracked", tracked)


def wheel(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in [*names, "stillhouse-1.dist-info/METADATA"]:
            archive.writestr(name, "x")
    return path


def sdist(path: Path, sizes: dict[str, int]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, size in {**sizes, "PKG-INFO": 1, ".gitignore": 1}.items():
            member = tarfile.TarInfo(f"stillhouse-1/{name}")
            member.size = size
            archive.addfile(member, io.BytesIO(bytes(size)))
    return path


def test_a_complete_wheel_passes(tmp_path):
    check_release.check_wheel(wheel(tmp_path / "a.whl", WHEEL))


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["stillhouse/a.py", "stillhouse/recipes/a.yaml"], "lacks stillhouse/page.css"),
        (["stillhouse/a.py", "stillhouse/page.css"], "lacks stillhouse/recipes/a.yaml"),
        ([*WHEEL, "stillhouse/key.pem"], "does not track: stillhouse/key.pem"),
        ([*WHEEL, "tests/a.py"], "does not track: tests/a.py"),
    ],
)
def test_another_wheel_is_rejected(tmp_path, names, message):
    with pytest.raises(SystemExit, match=message):
        check_release.check_wheel(wheel(tmp_path / "a.whl", names))


def test_a_complete_sdist_passes(tmp_path):
    check_release.check_sdist(sdist(tmp_path / "a.tar.gz", dict.fromkeys(TRACKED, 10)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"runs/mine/report.json": 10}, "does not track: runs/mine/report.json"),
        ({"docs/a.md": check_release.MOST_BYTES + 1}, "large files: docs/a.md"),
        ({"pyproject.toml": None}, "lacks pyproject.toml"),
        ({"src/stillhouse/page.css": None}, "lacks src/stillhouse/page.css"),
    ],
)
def test_another_sdist_is_rejected(tmp_path, changes, message):
    sizes = {
        name: size for name, size in {**dict.fromkeys(TRACKED, 10), **changes}.items() if size is not None
    }
    with pytest.raises(SystemExit, match=message):
        check_release.check_sdist(sdist(tmp_path / "a.tar.gz", sizes))


def test_the_changelog_has_a_section_of_the_version(monkeypatch, tmp_path):
    monkeypatch.setattr(check_release, "ROOT", tmp_path)
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 1.2.0 - 2026-11-30\n")
    check_release.check_changelog(Path("stillhouse-1.2.0-py3-none-any.whl"))
    with pytest.raises(SystemExit, match=r"no section for version 1\.2\.1"):
        check_release.check_changelog(Path("stillhouse-1.2.1-py3-none-any.whl"))
