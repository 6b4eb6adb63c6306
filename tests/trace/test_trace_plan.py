"""Plans as files: what they say, what is wrong with them and where."""

import dataclasses
import typing

import pytest

from stillhouse.errors import RecipeError, UsageError
from stillhouse.trace.access import Access, teacher_access
from stillhouse.trace.detectors.registry import DETECTORS, unmet_requirements
from stillhouse.trace.plan import (
    Exchangeable,
    PlannedTests,
    Radioactivity,
    Rephrasings,
    TeacherPlan,
    TracePlan,
    dump_plan,
    load_plan,
    parse_plan,
    plan_for_texts,
    resolve_plan,
)

EVERYTHING = Access(
    suspect=frozenset({"generate", "logprobs", "weights"}),
    teacher=frozenset(
        {"model", "weights", "sampler", "resamples", "marked resamples", "watermark key", "canaries"}
    ),
    references=2,
)
EVERY_TEST = PlannedTests(
    **{name: typing.get_args(hint)[0]() for name, hint in typing.get_type_hints(PlannedTests).items()}
)


def test_a_resolved_plan_comes_back_from_its_yaml():
    plan = TracePlan(
        name="case-7",
        suspect="rival",
        teachers=(TeacherPlan(name="ours", log="log.parquet", accounts=("a", "no")),),
        references=("other",),
        tests=PlannedTests(exchangeable=Exchangeable(surrogate_auc=(0.6, 0.7)), style=None),
    )
    assert parse_plan(dump_plan(plan)) == plan


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("hard: 0.5", "plan.yaml:1: hard: must be greater than 1, not 0.5"),
        (
            "name: a\ntests:\n  exchangable: {}",
            "plan.yaml:3: tests.exchangable: unknown key. Did you mean `tests.exchangeable`?",
        ),
        (
            "tests:\n  exchangeable:\n    score: loglike",
            "plan.yaml:3: tests.exchangeable.score: must be one of",
        ),
        ("tests:\n  exchangeable:\n    surrogate_auc: [0.4]", "plan.yaml:3"),
        ("teachers:\n- name: a/b\n  log: l", "names a directory"),
        ("teachers:\n- {name: a, log: l}\n- {name: a, log: m}", "two teachers are named `a`"),
        ("teachers:\n- {name: a, log: l, accounts: [x], placebo_accounts: [x]}", "both tested and a placebo"),
        ("teachers:\n- {name: a, log: l, placebo_accounts: [x]}", "its `accounts` must be named too"),
        ("[1]", "a plan is a mapping of keys"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(text, complaint):
    with pytest.raises(RecipeError) as caught:
        parse_plan(text, name="plan.yaml")
    assert complaint in str(caught.value)


def test_a_plan_that_is_not_there_names_the_nearest(tmp_path):
    (tmp_path / "plan.yaml").write_text("name: a")
    with pytest.raises(RecipeError, match="no such plan") as caught:
        load_plan(tmp_path / "plam.yaml")
    assert "plan.yaml" in str(caught.value.hint)


def test_an_author_asks_about_published_texts_and_about_nothing_else():
    """Whatever tests there are and whichever are on by default, or on in the plan."""
    for tests in (PlannedTests(), EVERY_TEST):
        planned = plan_for_texts(TracePlan(tests=tests), "texts.jsonl").tests
        for field in dataclasses.fields(PlannedTests):
            only = Rephrasings(texts="texts.jsonl") if field.name == "rephrasings" else None
            assert getattr(planned, field.name) == only, field.name


def test_every_test_of_the_plan_has_its_detector():
    assert PlannedTests.none().names == ()
    assert EVERY_TEST.names == tuple(DETECTORS)
    levels = [detector.level_in(TracePlan(tests=EVERY_TEST)) for detector in DETECTORS.values()]
    assert levels == [detector.level for detector in DETECTORS.values()]
    everybodys_key = TracePlan(tests=PlannedTests(radioactivity=Radioactivity(level="L1")))
    assert DETECTORS["radioactivity"].level_in(everybodys_key) == "L1"


def test_options_fill_a_plan_and_may_not_contradict_it():
    ours = TeacherPlan(name="ours", log="log.parquet")
    plan = resolve_plan(TracePlan(), suspect="rival", teachers=[ours], references=["r"])
    assert (plan.suspect, plan.teachers, plan.references) == ("rival", (ours,), ("r",))
    assert resolve_plan(plan, suspect=None, teachers=[], references=[]) == plan
    assert resolve_plan(plan, suspect="rival", teachers=[], references=[]) == plan
    with pytest.raises(UsageError, match="already names its suspect"):
        resolve_plan(plan, suspect="another", teachers=[], references=[])
    with pytest.raises(UsageError, match="no suspect was named"):
        resolve_plan(TracePlan(), suspect=None, teachers=[ours], references=[])
    with pytest.raises(UsageError, match="no log was named"):
        resolve_plan(TracePlan(), suspect="rival", teachers=[], references=[])


def test_full_access_allows_every_planned_test():
    assert set(unmet_requirements(TracePlan(), EVERYTHING).values()) == {None}
    assert "rephrasings" not in unmet_requirements(TracePlan(), EVERYTHING)


@pytest.mark.parametrize(
    ("lost", "tests"),
    [
        ({"suspect": frozenset({"generate"})}, {"exchangeable", "canaries", "weights"}),
        ({"suspect": frozenset({"logprobs"})}, {"radioactivity", "style", "identity", "weights"}),
        ({"teacher": frozenset()}, {"exchangeable", "radioactivity", "canaries", "weights"}),
        ({"teacher": frozenset({"resamples"})}, {"radioactivity", "canaries", "weights"}),
        ({"teacher": EVERYTHING.teacher - {"marked resamples"}}, {"exchangeable"}),
        ({"references": 1}, {"style"}),
    ],
)
def test_less_access_costs_the_tests_that_need_it_and_says_why(lost, tests):
    found = unmet_requirements(TracePlan(), dataclasses.replace(EVERYTHING, **lost))
    assert {test for test, why in found.items() if why} == tests
    assert all(why.startswith(("needs", "its score")) for why in found.values() if why)


def test_with_text_only_the_overlap_score_is_what_remains():
    text_only = dataclasses.replace(EVERYTHING, suspect=frozenset({"generate"}))
    assert "overlap" in str(unmet_requirements(TracePlan(), text_only)["exchangeable"])
    plan = TracePlan(tests=PlannedTests(exchangeable=Exchangeable(score="overlap")))
    assert unmet_requirements(plan, text_only)["exchangeable"] is None


def test_the_score_of_the_teacher_needs_its_weights():
    plan = TracePlan(tests=PlannedTests(exchangeable=Exchangeable(score="teacher")))
    behind_api = dataclasses.replace(EVERYTHING, teacher=frozenset({"model", "resamples"}))
    assert "--teacher" in str(unmet_requirements(plan, behind_api)["exchangeable"])
    assert unmet_requirements(plan, EVERYTHING)["exchangeable"] is None


def test_a_reference_score_needs_a_reference():
    plan = TracePlan(tests=PlannedTests(exchangeable=Exchangeable(score="reference")))
    assert "--reference" in str(
        unmet_requirements(plan, dataclasses.replace(EVERYTHING, references=0))["exchangeable"]
    )


def test_what_a_plan_gives_of_a_teacher():
    bare = TeacherPlan(name="t", log="l")
    assert teacher_access(bare, has_weights=False) == frozenset()
    full = TeacherPlan(name="t", log="l", model="m", resamples="r", watermark_key="k", canaries="c")
    given = teacher_access(full, has_weights=True, has_sampler=True, marked_resamples=True)
    assert given == EVERYTHING.teacher
    assert not {"weights", "sampler", "marked resamples"} & teacher_access(full, has_weights=False)


def test_a_marked_log_needs_marked_resamples():
    plan = TracePlan()
    assert unmet_requirements(plan, EVERYTHING)["exchangeable"] is None

    def why(*without, plan=plan, more=()):
        given = dataclasses.replace(EVERYTHING, teacher=(EVERYTHING.teacher - set(without)) | set(more))
        return unmet_requirements(plan, given)["exchangeable"]

    assert "still trace resample --watermark" in why("marked resamples")
    drawn_here = ("resamples", "marked resamples")
    assert why(*drawn_here) is None
    assert "safetensors" in why(*drawn_here, "sampler")
    assert why("marked resamples", "watermark key") is None
    unknown = TracePlan(tests=PlannedTests(radioactivity=None))
    assert "the kind of the log's watermark" in why(*drawn_here, plan=unknown)
    with_placebos = TeacherPlan(name="t", log="l", accounts=("a",), placebo_accounts=("b",))
    assert "placebo accounts" in teacher_access(with_placebos, has_weights=True)
    assert "--watermark-by-account" in why(*drawn_here, more=["placebo accounts"])
    others = TracePlan(teachers=(with_placebos, TeacherPlan(name="u", log="l", watermark_key="k")))
    assert why(*drawn_here, plan=others) is None, "the placebo accounts are another teacher's"
