"""Every shipped recipe can be read and planned without changes."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillhouse.models import describe, parse_reference
from stillhouse.plan import plan
from stillhouse.recipe.load import dump_recipe, load_recipe, parse_recipe
from stillhouse.recipe.study import is_study, load_study, required_arms

SHIPPED = Path(__file__).parents[2] / "recipes"
RECIPES = sorted(path for path in SHIPPED.glob("*.yaml") if not is_study(path))
STUDIES = sorted(path for path in SHIPPED.rglob("*.yaml") if is_study(path))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_shipped_recipe_is_read_saved_and_planned(path):
    recipe = load_recipe(path)
    assert recipe.name == path.stem
    assert parse_recipe(dump_recipe(recipe)) == recipe
    planned = plan(recipe)
    assert planned.seconds > 0
    assert planned.verdict.allowed or recipe.accept_terms
    stages = [stage.name for stage in planned.stages]
    assert stages.index("collect") < stages.index("train") < stages.index("evaluate")


def test_the_quickstart_names_a_model_that_its_package_brings():
    recipe = load_recipe(next(path for path in RECIPES if path.stem == "quickstart"))
    facts = describe(recipe.teacher.model)
    assert parse_reference(recipe.teacher.model).kind == "embedded"
    assert facts.layers is not None
    assert recipe.student.layers is not None
    assert recipe.student.layers < facts.layers


@pytest.mark.parametrize("path", STUDIES, ids=lambda path: load_study(path).study)
def test_a_shipped_study_is_read_with_every_arm(path):
    study = load_study(path, ["seeds=[7]"])
    assert study.seeds == (7,)
    assert Path(study.make).is_file()
    assert all(set(required_arms(study, name)) < set(study.arms) for name in study.arms)


def test_an_arm_counts_all_that_its_teacher_learned_from():
    study = load_study(SHIPPED / "r1-mini" / "study.yaml")
    assert required_arms(study, "distil-llama") == ("base", "cold", "r1", "base-llama")
