"""Reading a study: what is wrong is said with its line and the nearest right word; verdicts of claims."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from stillhouse import pipeline
from stillhouse.cli import main
from stillhouse.corpus import load_prompts
from stillhouse.errors import RecipeError
from stillhouse.evaluate import study_page, study_results, study_table
from stillhouse.evaluate.study import difference_in_words, judge_claim
from stillhouse.pipeline.study_data import make_data
from stillhouse.recipe.study import Claim, arm_recipe, load_study

STUDY = """\
study: tiny
seeds: [1]
make: tasks.py
tests: {learned: "{data}/test.jsonl"}
verifiers: [{kind: exact}]
common:
  prompts: {source: "{data}/prompts.jsonl"}
  train:
    epochs: 1
arms:
  base:
    label: base
    recipe:
      student: {model: "{data}/start"}
  better:
    label: better
    recipe:
      student: {model: "{runs}/base/student"}
      train: {tokens: 10}
claims:
  - {says: it helps, arm: better, over: base, test: learned}
"""


@pytest.fixture
def file(tmp_path):
    def write(change: tuple[str, str] = ("", "")) -> Path:
        assert change[0] in STUDY
        place = tmp_path / "study.yaml"
        place.write_text(STUDY.replace(*change) if change[0] else STUDY)
        return place

    return write


def test_an_arms_recipe_is_laid_over_the_common_one_and_learns_from_its_own_start(file):
    recipe = arm_recipe(load_study(file()), "better", 5, Path("d"), Path("r"))
    assert (recipe.name, recipe.seed) == ("better", 5)
    assert (recipe.train.epochs, recipe.train.tokens) == (1, 10)
    assert recipe.student.model == recipe.teacher.model == "r/base/student"
    assert recipe.prompts.source == "d/prompts.jsonl"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("label: better", "labl: better"), ["study.yaml:16: arms.better.labl", "`arms.better.label`"]),
        (("label: better", "label: 3"), ["study.yaml:16: arms.better.label: must be text, not 3"]),
        (("seeds: [1]", "seeds: [-1]"), ["study.yaml:2: seeds[0]: must be at least 0"]),
        (("seeds: [1]", "seeds: []"), ["study.yaml:2: seeds: must not be empty"]),
        (("tokens: 10", "tokens: ten"), ["study.yaml:19: train.tokens: must be a whole number"]),
        (("epochs: 1", "epoch: 1"), ["study.yaml:9: train.epoch: unknown key", "`train.epochs`"]),
        (("{runs}/base", "{runs}/bose"), ["study.yaml:15: arms.better: bose must be an arm before it"]),
        (("study: tiny", "study: ../tiny"), ["study.yaml:1: study: names a directory"]),
        (
            ("  train:\n    epochs: 1", "  seed: 3"),
            ["study.yaml:8: common.seed: must not be set", "is the arm's name, or"],
        ),
        (("over: base", "over: bas"), ["study.yaml:20: claims: [0].over: there is no `bas`", "`base`"]),
        (
            ("test: learned}", "test: learned, measure: pass}"),
            ["claims[0].measure: must be one of `pass_at_1`"],
        ),
    ],
)
def test_what_is_wrong_is_said_with_its_line(file, change, said):
    with pytest.raises(RecipeError) as error:
        load_study(file(change))
    for words in said:
        assert words in str(error.value)


def test_an_override_is_named_when_it_is_wrong(file):
    with pytest.raises(RecipeError, match=r"^--common\.train\.epochs: must be a number"):
        load_study(file(), ["common.train.epochs=many"])


def test_a_study_is_only_run_and_planned(file, capsys):
    assert main(["collect", str(file())]) == 2
    assert "is a study, which only `still run` and `still plan` accept" in capsys.readouterr().err


def test_a_study_is_not_restarted_and_accepts_terms_in_its_file(file, capsys):
    assert main(["run", str(file()), "--restart"]) == 2
    assert "a study supports neither --restart nor --accept-terms" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "said"),
    [
        (
            "def make(directory, seed, settings): return 1 / 0",
            "tasks.py: ZeroDivisionError",
        ),
        ("import no_such_module", "tasks.py: ModuleNotFoundError"),
        ("def make(", "tasks.py: SyntaxError"),
        ("x = 1", "has no function `make(directory, seed, settings)`"),
    ],
)
def test_what_a_users_own_code_does_wrong_is_said(file, tmp_path, code, said):
    study = load_study(file())
    (tmp_path / "tasks.py").write_text(code)
    with pytest.raises(RecipeError) as error:
        pipeline.run_study(study, tmp_path / "study.yaml", tmp_path / "out", pipeline.run)
    assert said in str(error.value)


def found(better, base, cheaper=1.0):
    """Of every seed, pass@1 of the two arms."""
    return {
        seed: {
            "better": {"tests": {"learned": {"pass_at_1": high}}, "flops": 1.0},
            "base": {"tests": {"learned": {"pass_at_1": low}}, "flops": cheaper},
        }
        for seed, (high, low) in enumerate(zip(better, base, strict=True))
    }


@pytest.mark.parametrize(
    ("better", "margin", "cheaper", "verdict"),
    [
        ([0.6, 0.61, 0.62], 0.0, None, "appeared"),
        ([0.6, 0.41, 0.62], 0.0, None, "not shown"),
        ([0.3, 0.31, 0.32], 0.0, None, "contradicted"),
        ([0.39, 0.40, 0.40], -0.03, None, "appeared"),
        ([0.6, 0.61, 0.62], 0.0, 2.0, "appeared"),
        ([0.6, 0.61, 0.62], 0.0, 20.0, "contradicted"),
        ([0.9], 0.0, None, "one seed: no verdict"),
    ],
)
def test_a_claim_is_judged_by_the_interval_of_its_difference(better, margin, cheaper, verdict):
    claim = Claim(says="", arm="better", over="base", test="learned", margin=margin, cheaper=cheaper)
    base = [0.4, 0.41, 0.4][: len(better)]
    assert judge_claim(claim, found(better, base, cheaper=10.0), 0.95)["verdict"] == verdict


def test_the_interval_is_students_t_over_the_differences_within_seeds():
    claim = Claim(says="", arm="better", over="base", test="learned")
    judged = judge_claim(claim, found([0.5, 0.7, 0.6], [0.4, 0.5, 0.6]), 0.95)["difference"]
    # differences 0.1, 0.2, 0.0: mean 0.1, standard error 0.1/√3, t(0.975; 2) = 4.302653
    assert judged["value"] == pytest.approx(0.1)
    assert judged["high"] - judged["value"] == pytest.approx(4.302653 * 0.1 / 3**0.5, rel=1e-5)


def test_a_difference_is_said_with_the_arms_own_names():
    claim = Claim(
        says="",
        arm="on-policy",
        over="distil-rl",
        test="learned",
        measure="pass_at_1",
        margin=-0.03,
        cheaper=2,
    )
    arms = {
        "on-policy": {"tests": {"learned": {"pass_at_1": 0.4}}, "flops": 1.0},
        "distil-rl": {"tests": {"learned": {"pass_at_1": 0.5}}, "flops": 4.0},
    }
    said = difference_in_words(judge_claim(claim, {1: arms}, 0.95))
    assert said == (
        "on-policy over distil-rl, pass@1 on learned: −10.0 points (margin −3); 4.00 times fewer operations"
    )


PLAIN = """\
study: plain
seeds: [1, 2]
questions: {source: q.jsonl, test: 3}
verifiers: [{kind: exact}]
common: {teacher: {model: t, terms: own}}
arms:
  a: {label: a, recipe: {student: {model: m}}}
  b: {label: b, recipe: {student: {model: n}}}
claims: [{says: a is better, arm: a, over: b}]
"""


def write_plain(directory: Path, text: str = PLAIN) -> Path:
    rows = [{"question": f"What is {n} and {n}?", "answer": str(2 * n)} for n in range(12)]
    (directory / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (directory / "study.yaml").write_text(text)
    return directory / "study.yaml"


def test_a_file_of_questions_needs_no_python(tmp_path):
    study = load_study(write_plain(tmp_path))
    assert study.tests == {"test": "{data}/test.jsonl"}
    assert arm_recipe(study, "a", 1, Path("d"), Path("r")).prompts.source == "d/train.jsonl"
    questions = {}
    for seed in (1, 2):
        data = make_data(study, tmp_path / "study.yaml", seed, tmp_path / f"data-{seed}")
        train, test = (load_prompts(str(data / name)) for name in ("train.jsonl", "test.jsonl"))
        assert (len(train), len(test)) == (9, 3)
        assert not {p.id for p in train} & {p.id for p in test}
        for prompt in test:  # the reference answer is still there for the verifier
            number = int(prompt.messages[-1]["content"].split()[2])
            assert prompt.tags == {"answer": str(2 * number)}
        questions[seed] = {p.id for p in test}
        assert make_data(study, tmp_path / "study.yaml", seed, data) == data
    assert questions[1] != questions[2]
    with (tmp_path / "q.jsonl").open("a") as file:
        file.write('{"question": "One more?"}\n')
    with pytest.raises(RecipeError, match=r"another .*q\.jsonl"):
        make_data(study, tmp_path / "study.yaml", 1, tmp_path / "data-1")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("verifiers: [{kind: exact}]\n", "make: tasks.py\nverifiers: [{kind: exact}]\n"), "together with"),
        (("verifiers: [{kind: exact}]\n", "tests: {x: q.jsonl}\n"), "tests: need `verifiers`"),
        (("verifiers: [{kind: exact}]\n", ""), "[0].test: must be set for `pass_at_1`. There are none."),
        (("over: b", "over: b, measure: kl, test: test"), "`kl` is a measure of the arms' reports"),
        (("test: 3", "test: 0"), "questions.test: must be"),
    ],
)
def test_what_does_not_go_together_is_said(tmp_path, change, said):
    with pytest.raises(RecipeError) as error:
        load_study(write_plain(tmp_path, PLAIN.replace(*change)))
    assert said in str(error.value)


def test_questions_that_leave_none_to_train_on_are_refused(tmp_path):
    study = load_study(write_plain(tmp_path, PLAIN.replace("test: 3", "test: 12")))
    with pytest.raises(RecipeError, match="12 of 12 questions"):
        make_data(study, tmp_path / "study.yaml", 1, tmp_path / "data")


@pytest.mark.parametrize(
    ("better", "verdict"),
    [
        ([0.60, 0.62, 0.61], "appeared"),
        ([0.80, 0.82, 0.81], "contradicted"),
        ([0.705, 0.703, 0.702], "too small to matter"),
        ([0.60, 0.90, 0.70], "not shown"),
    ],
)
def test_of_a_divergence_the_lower_one_is_better(better, verdict):
    claim = Claim(says="", arm="better", over="base", measure="kl")
    arms = {
        seed: {
            "better": {"report": {"kl": kl}, "flops": 1.0},
            "base": {"report": {"kl": 0.7}, "flops": 1.0},
        }
        for seed, kl in enumerate(better)
    }
    judged = judge_claim(claim, arms, 0.95)
    assert judged["verdict"] == verdict
    value = sum(better) / 3 - 0.7
    words = difference_in_words(judged)
    assert words.startswith(f"better over base, KL to the teacher: {value:+.3f} nats".replace("-", "−"))


def test_a_difference_within_a_point_is_too_small_to_matter():
    claim = Claim(says="", arm="better", over="base", test="learned")
    judged = judge_claim(claim, found([0.402, 0.411, 0.403], [0.4, 0.41, 0.4]), 0.95)
    assert judged["difference"]["low"] > 0 - 0.01
    assert judged["verdict"] == "too small to matter"


def test_a_measure_that_a_report_does_not_have_is_named():
    claim = Claim(says="", arm="a", over="b", measure="agreement")
    arms = {1: {name: {"report": {"nll": 1.0}, "flops": 1.0} for name in ("a", "b")}}
    with pytest.raises(RecipeError, match="the report of arm a has no agreement"):
        judge_claim(claim, arms, 0.95)


def test_a_study_without_tests_has_a_table_and_a_page_of_its_reports(tmp_path):
    text = PLAIN.replace("verifiers: [{kind: exact}]\n", "").replace("over: b", "over: b, measure: nll")
    study = load_study(write_plain(tmp_path, text))
    arm = {"tests": {}, "examples": {}, "curves": {}, "parameters": 9, "cpu_seconds": 4.2, "flops": 1e9}
    arm["flops_with_those_before"] = 1e9
    measured = {
        seed: {
            name: arm | {"report": {"nll": 1.5 + 0.01 * seed + shift}}
            for name, shift in (("a", 0), ("b", 0.1))
        }
        for seed in (1, 2, 3)
    }
    results = study_results(study, measured)
    title, columns, rows = study_table(results)
    assert (title, columns) == ("plain: 3 seeds; [95% intervals over seeds]",
                                ["arm", "NLL nats/token", "GFLOP", "CPU s"])  # fmt: skip
    # 1.51, 1.52, 1.53: standard error 0.01/√3, t(0.975; 2) = 4.302653
    assert rows[0] == ["a", "1.520 [1.495–1.545]", "1", "4"]
    page = study_page(results)
    assert "appeared" in page and "−0.100" in page and "NLL" in page
    assert "Example answers" not in page and "Reinforcement" not in page
