"""Reading a study: what is wrong is said with its line and the nearest right word; verdicts of claims."""

from __future__ import annotations

from pathlib import Path

import pytest

from stillhouse import pipeline
from stillhouse.cli import main
from stillhouse.errors import RecipeError
from stillhouse.evaluate.study import difference_in_words, judge_claim
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


def test_a_study_is_only_run(file, capsys):
    assert main(["plan", str(file())]) == 2
    assert "is a study, which only `still run` accepts" in capsys.readouterr().err


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
