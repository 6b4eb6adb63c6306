"""docs/python.md: the code of each section runs, on a small model in place of the embedded one."""

import re
import shutil
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "python.md").read_text("utf-8")
SECTIONS = {
    title: "\n".join(re.findall(r"```python\n(.*?)```", text, re.S))
    for title, text in re.findall(r"(?ms)^## (.*?)\n(.*?)(?=^## |\Z)", PAGE)
}


@pytest.fixture(scope="module")
def licensed_teacher(tiny_teacher, tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("page") / "smollm2"
    shutil.copytree(tiny_teacher, directory)
    (directory / "README.md").write_text("---\nlicense: apache-2.0\n---\n")
    return directory


def test_the_page_has_code_in_every_section():
    assert len(SECTIONS) >= 7 and all(SECTIONS.values())


# Libraries of the page: accelerate (Trainer without pinned memory), matplotlib (the trace's report).
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("title", SECTIONS)
def test_a_sections_code_runs(title, licensed_teacher, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code = SECTIONS[title]
    assert "import stillhouse as st" in code, "a section must run by itself"
    exec(compile(code.replace('"embedded:smollm2"', repr(str(licensed_teacher))), f"{title}.py", "exec"), {})
