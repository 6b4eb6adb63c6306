"""Starting without the repository: `still init`, and the packaged recipes by name."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from stillhouse.cli import main
from stillhouse.corpus import load_prompts
from stillhouse.recipe.load import load_recipe
from stillhouse.recipe.shipped import find_recipe, shipped_recipes


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_init_writes_a_recipe_that_runs_as_it_is(empty, capsys):
    assert main(["init"]) == 0
    output = capsys.readouterr().out
    assert "still run recipe.yaml" in output
    recipe = load_recipe("recipe.yaml")
    asked = [prompt.id for prompt in load_prompts(recipe.prompts.source)]
    assert asked == [prompt.id for prompt in load_prompts("package:mmlu")]
    # the quickstart, spelled out with a file of one's own
    quickstart = load_recipe(shipped_recipes()["quickstart"])
    for section in ("teacher", "student", "collect", "filter", "objective"):
        assert getattr(recipe, section) == getattr(quickstart, section), section
    assert dataclasses.replace(recipe.prompts, source="package:mmlu") == quickstart.prompts


def test_init_never_overwrites(empty, capsys):
    (empty / "p").mkdir()
    (empty / "p" / "questions.jsonl").write_text("mine")
    assert main(["init", "p"]) == 2
    assert "p/questions.jsonl exists already" in capsys.readouterr().err
    assert [file.name for file in (empty / "p").iterdir()] == ["questions.jsonl"]
    assert main(["init", "p/q", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["next"][-1] == "still run p/q/recipe.yaml"


def test_a_packaged_recipe_is_known_by_name(empty):
    (empty / "quickstart").mkdir()  # e.g. of an earlier run
    assert main(["run", "quickstart", "--dry-run", "--prompts.limit", "6", "--prompts.held_out", "2"]) == 0
    for name in ("quickstart.yaml", "recipes/quickstart.yaml"):
        assert find_recipe(Path(name)) == shipped_recipes()["quickstart"]


def test_a_study_is_known_by_its_directory(empty):
    assert find_recipe(Path("r1-mini")) == shipped_recipes()["r1-mini/study"]


def test_a_file_comes_before_a_packaged_recipe(empty):
    (empty / "quickstart").write_text("name: own\n")
    assert find_recipe(empty / "quickstart") == empty / "quickstart"


def test_an_unknown_name_suggests_packaged_recipes(empty, capsys):
    assert main(["plan", "quikstart"]) == 2
    assert "Did you mean `quickstart`?" in capsys.readouterr().err
    assert main(["plan", "zzz"]) == 2
    assert "Recipes that come with Stillhouse: api-teacher, lora" in capsys.readouterr().err
