"""Errors that both plan and run raise before anything is sent to a teacher."""

import json
import shutil

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


GEMMA_1 = """{{ bos_token }}{% if messages[0]['role'] == 'system' %}
{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}
<start_of_turn>{{ message['role'] }}\n{{ message['content'] }}<end_of_turn>\n{% endfor %}"""
THINKS = "{% if enable_thinking is defined and enable_thinking is false %}<think></think>{% endif %}"


@pytest.fixture
def teacher(tmp_path, tiny_teacher):
    """A function that returns the overrides for a teacher with this chat template."""

    def overrides(template, **fields):
        directory = shutil.copytree(tiny_teacher, tmp_path / "teacher")
        (directory / "chat_template.jinja").write_text(template)
        values = {"model": str(directory), "terms": "apache-2.0", **fields}
        return [f"teacher.{key}={json.dumps(value)}" for key, value in values.items()]

    return overrides


def test_a_system_prompt_that_the_teachers_template_refuses(tmp_path, teacher):
    overrides = teacher(GEMMA_1, system="Be brief.")
    for refuse in (plan, lambda found: run(found, tmp_path / "run")):
        with pytest.raises(RecipeError, match=r"^teacher.system: .* System role not supported") as caught:
            refuse(recipe(*overrides, "student.layers=2"))
        assert "Write the instructions into the prompts" in str(caught.value.hint)
    assert not (tmp_path / "run/corpus").exists()


@pytest.mark.parametrize("option", [{"enable_thinking": False}, {"reasoning_effort": "low"}])
def test_an_option_that_the_teachers_template_does_not_read(teacher, option):
    with pytest.raises(RecipeError, match=f"does not read `{next(iter(option))}`"):
        preflight(recipe(*teacher(GEMMA_1, **option)))


def test_an_option_that_the_template_reads_passes(teacher):
    preflight(recipe(*teacher(THINKS, enable_thinking=False)))


def test_a_stage_that_will_not_run_is_not_looked_at():
    preflight(recipe("student.layers=31"), ["filter", "train"])
    with pytest.raises(StillhouseError):
        preflight(recipe("student.layers=31"), ["student"])
