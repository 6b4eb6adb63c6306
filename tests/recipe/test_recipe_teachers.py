"""Who teaches which prompt, and what several teachers cannot be."""

from __future__ import annotations

import pytest

from stillhouse.errors import RecipeError
from stillhouse.pipeline.resume import _affected
from stillhouse.recipe.load import dump_recipe, parse_recipe
from stillhouse.recipe.teachers import teacher_number, teacher_shares

ROUTED = "{model: b, route: {domain: code, level: '3'}}"
SOUND = "name: n\nteacher: {model: a}\nprompts: {source: p}\nstudent: {model: m}\n"
TEXT_ONLY = "objective: {kind: cross_entropy}\n"


def recipe(*teachers: str, extra: str = ""):
    return parse_recipe(f"{SOUND}teachers: [{', '.join(teachers)}]\n{extra}")


def test_the_first_whose_tags_fit_is_responsible_and_else_the_main_one():
    found = recipe(ROUTED, "{model: c}", "{model: d, route: {domain: code}}")
    assert teacher_number(found, {"domain": "code", "level": 3, "more": 1}) == 1
    assert teacher_number(found, {"domain": "code", "level": 4}) == 3
    assert teacher_number(found, {"domain": "prose"}) == 0
    assert teacher_number(found, {}) == 0
    assert parse_recipe(dump_recipe(found)) == found


def test_shares_are_weights_made_to_sum_to_one():
    found = recipe(ROUTED, "{model: c, weight: 2.0}", "{model: d}")
    assert teacher_shares(found, 0) == {0: 0.25, 2: 0.5, 3: 0.25}
    assert teacher_shares(found, 1) == {1: 1.0}
    assert teacher_shares(recipe(ROUTED), 0) == {0: 1.0}


@pytest.mark.parametrize(
    ("teachers", "extra", "key"),
    [
        (("{model: 'api:http://x/v1#m'}",), TEXT_ONLY, "teachers[0].model"),
        (("{model: b}",), TEXT_ONLY, "teachers[0]"),
        (("{model: b}",), "objective: {targets: topk}\n", "objective.targets"),
        (("{model: b, system: Be brief.}",), "", "teachers[0].context"),
        (("{model: b, context: private}",), "", "teachers[0].context"),
        (("{model: b, route: {a: x}, weight: 2.0}",), "", "teachers[0].weight"),
        ((ROUTED, ROUTED), "", "teachers[1].route"),
        ((ROUTED, "{model: 'api:http://x/v1#m', route: {a: x}}"), "", "objective.kind"),
        (("{model: b, route: {a: 3}}",), "", "teachers[0].route.a"),
        ((ROUTED,), "collect: {max_cost: 1.0}\n", "collect.max_cost"),
        ((ROUTED,), "objective: {align: spans}\n", "teachers"),
    ],
)
def test_what_could_not_work_is_refused(teachers, extra, key):
    with pytest.raises(RecipeError) as caught:
        recipe(*teachers, extra=extra)
    assert f": {key}: " in str(caught.value) or f": {key.replace('[', '.').replace(']', '')}: " in str(
        caught.value
    )


@pytest.mark.parametrize("field", ["route: {a: x}", "weight: 2.0"])
def test_the_main_teacher_has_no_route_and_no_weight_alone(field):
    with pytest.raises(RecipeError, match=f"teacher.{field.split(':')[0]}"):
        parse_recipe(SOUND.replace("{model: a}", f"{{model: a, {field}}}"))


def test_another_teacher_is_another_run():
    assert {"collect", "targets", "train", "on_policy"} <= _affected("teachers", None)
