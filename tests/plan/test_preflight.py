"""Errors that both plan and run raise before anything is sent to a teacher."""

import pytest

from stillhouse.errors import RecipeError, StillhouseError
from stillhouse.pipeline import run
from stillhouse.plan import plan, preflight
from stillhouse.recipe.load import parse_recipe

SOUND = """\
name: n
teacher: {model: embedded:smollm2}
prompts: {source: package:mmlu, limit: 20, held_out: 5}
student: {init: prune, layers: 2}
"""


def recipe(*overrides):
    return parse_recipe(SOUND, overrides=overrides)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["student.layers=31"], "cannot keep 31 layers: embedded:smollm2 has 30"),
        (["student.layers=null", "student.keep=[0, 30]"], "there is no layer 30"),
        (["student.intermediate=1537"], "student.intermediate"),
        (["student.heads=4"], "student.heads"),
        (["student.hidden=577"], "student.hidden"),
        (["verifiers=[{kind: function, function: 'no_such_module:check'}]"], "verifier no_such_module:check"),
        (["verifiers=[{kind: function, function: 'json:no_such_function'}]"], "no_such_function"),
        (["train.device=cuda:99"], "train.device"),
        (["student.lora={targets: [q_prj]}"], "student.lora.targets"),
    ],
)
def test_it_is_refused_by_plan_and_run(tmp_path, overrides, said):
    for refuse in (plan, lambda found: run(found, tmp_path / "run")):
        with pytest.raises(RecipeError, match=said.replace("[", r"\[")):
            refuse(recipe(*overrides))
    assert not (tmp_path / "run/corpus").exists()


@pytest.mark.parametrize(
    "override",
    [
        "student.layers=30",
        "student.heads=3",
        "student.hidden=576",
        "student.lora={rank: 4}",
        "verifiers=[{kind: function, function: 'json:loads'}]",
        "train.device=cpu",
    ],
)
def test_what_is_possible_passes(override):
    preflight(recipe(override))


def test_a_stage_that_will_not_run_is_not_looked_at():
    preflight(recipe("student.layers=31"), ["filter", "train"])
    with pytest.raises(StillhouseError):
        preflight(recipe("student.layers=31"), ["student"])
