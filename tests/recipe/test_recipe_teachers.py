"""Who teaches which prompt, and what several teachers cannot be."""

from __future__ import annotations

import pytest

from stillhouse.errors import RecipeError
from stillhouse.pipeline.resume import _affected, compare_recipes
from stillhouse.provenance import recipe_section_hash
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


API = "name: n\nteacher: {model: 'api:http://x/v1#m', %s}\nprompts: {source: p}\nstudent: {model: m}\n"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            SOUND.replace("model: a", "model: a, extra_body: {x: 1}"),
            "teacher.extra_body: has no effect on local",
        ),
        (API % "extra_body: {messages: []}", "teacher.extra_body.messages: is set by the collection"),
        (API % "extra_body: {temperature: 0.5}", "set `collect.temperature`, which the corpus records"),
        (
            API % "extra_body: {reasoning_effort: low}, reasoning_effort: low",
            "is set by `teacher.reasoning_effort` too",
        ),
        (API % "enable_thinking: 'no'", "teacher.enable_thinking: must be `true` or `false`"),
    ],
)
def test_options_without_effect_are_refused(text, said):
    with pytest.raises(RecipeError) as caught:
        parse_recipe(text + TEXT_ONLY)
    assert said in str(caught.value)


def test_an_averaged_teacher_answers_nothing_so_options_have_no_effect():
    with pytest.raises(RecipeError, match="without a `route` it answers nothing"):
        recipe("{model: c, enable_thinking: false}")


def test_only_an_api_has_sampling_defaults_of_its_own():
    api = API % "extra_body: {seed: null, thinking: {type: disabled}}" + TEXT_ONLY
    for text, expected in ((SOUND, (1.0, 1.0)), (api, (None, None))):
        collect = parse_recipe(text).collect
        assert (collect.temperature, collect.top_p) == expected
        assert parse_recipe(dump_recipe(parse_recipe(text))) == parse_recipe(text)
    assert parse_recipe(api + "collect: {temperature: 0.5}\n").collect.temperature == 0.5


def test_an_older_run_of_an_api_resumes(tmp_path):
    """Version 0.2.0 resolved what was not set to 1.0."""
    text = API % "terms: mit" + TEXT_ONLY
    before = parse_recipe(text + "collect: {temperature: 1.0, top_p: 1.0}\n")
    shard = tmp_path / "corpus/collected/shard-000000.parquet"
    shard.parent.mkdir(parents=True)
    shard.touch()
    changes = compare_recipes(before, parse_recipe(text), tmp_path)
    assert [key for key, _, _ in changes.allowed] == ["collect.temperature", "collect.top_p"]
    assert changes.refused == []
    changes = compare_recipes(before, parse_recipe(text + "collect: {temperature: 0.5}\n"), tmp_path)
    assert [key for key, _, _ in changes.refused] == ["collect.temperature"]


def test_options_change_the_hash_of_the_teacher_and_their_defaults_do_not():
    hashes = {
        option: recipe_section_hash(parse_recipe(API % option + TEXT_ONLY), "teacher")
        for option in ("terms: mit", "terms: mit, enable_thinking: null, extra_body: {}")
    }
    assert len(set(hashes.values())) == 1
    changed = {
        recipe_section_hash(parse_recipe(API % f"terms: mit, {option}" + TEXT_ONLY), "teacher")
        for option in ("enable_thinking: false", "reasoning_effort: low", "extra_body: {a: 1}")
    }
    assert len(changed | set(hashes.values())) == 4
