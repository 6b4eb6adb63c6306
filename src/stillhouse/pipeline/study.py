"""Runs a study: every arm for every seed, all evaluated on the same tests; finished work is kept.

    <study>/seed-1/data/        what `make` wrote, or the questions' split
    <study>/seed-1/<arm>/       a run's directory, and tests.json: its student's answers to every test
    <study>/study.json  study.html

Seeds are independent, so several processes may run different seeds of a study in the same directory
(`--seeds`). Each writes the report of all finished seeds, so the last to end writes the full one.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stillhouse.console import console
from stillhouse.errors import RecipeError
from stillhouse.files import atomic_write, read_json, read_json_lines, write_json
from stillhouse.hashing import sha256_file, sha256_json
from stillhouse.pipeline.study_data import check_tests, make_data
from stillhouse.plan.cost_formulas import forward_flops, training_flops
from stillhouse.plan.requirements import missing, raise_missing
from stillhouse.plan.shapes import Shape, shape_of
from stillhouse.provenance import Manifest, versions
from stillhouse.recipe import Recipe
from stillhouse.recipe.load import load_run_recipe, recipe_hash
from stillhouse.recipe.study import REPORT_MEASURES, Study, arm_recipe, required_arms

COSTED_STAGES = ("collect", "filter", "select", "student", "targets", "train", "on_policy")
"""Stages whose time counts as an arm's cost; evaluation does not."""
CURVES = ("reward", "length", "entropy")
"""Metrics of on-policy rounds that the report plots."""
EXAMPLES = 6
"""Questions of each test whose answers are in the report."""

RunRecipe = Callable[[Recipe, Path], Any]


def run_study(study: Study, file: Path, directory: Path, run: RunRecipe) -> dict[str, Any]:
    """Runs all arms that are not finished and returns the results of all finished seeds.

    Args:
        file: the study's own file, for messages.
        run: :func:`stillhouse.pipeline.run`.

    Raises:
        MissingExtraError: an arm needs what is not installed.
        RecipeError: `make` cannot be loaded, or an arm's directory holds another recipe.
    """
    from stillhouse.evaluate import study_page, study_results

    _require_available(study, directory)
    for seed in study.seeds:
        runs = directory / f"seed-{seed}"
        data = make_data(study, file, seed, runs / "data")
        check_tests(study, file, data)
        for name in study.arms:
            recipe = arm_recipe(study, name, seed, data, runs)
            _run_arm(study, recipe, runs / name, seed, run)
            _answer_tests(study, runs, name, seed, data)
    by_seed = {
        seed: _results(study, directory / f"seed-{seed}") for seed in _finished_seeds(study, directory)
    }
    results = study_results(study, by_seed) | {"environment": versions()}
    write_json(directory / "study.json", results)
    atomic_write(directory / "study.html", study_page(results))
    return results


def _require_available(study: Study, directory: Path) -> None:
    """Raises one error for everything that the arms lack, except what the study itself makes."""
    runs = directory / f"seed-{study.seeds[0]}"
    recipes = [arm_recipe(study, name, study.seeds[0], runs / "data", runs) for name in study.arms]
    lacking = (item for recipe in recipes for item in missing(recipe))
    raise_missing([item for item in lacking if str(runs) not in item.what])


def _run_arm(study: Study, recipe: Recipe, directory: Path, seed: int, run: RunRecipe) -> None:
    """Runs an arm unless it is finished; raises RecipeError if it was started from other inputs."""
    inputs, record = _arm_inputs(study, recipe, directory.parent), directory / "origin.json"
    if record.is_file() and (before := read_json(record)) != inputs:
        changed = ", ".join(key for key in inputs if before.get(key) != inputs[key])
        raise RecipeError(
            f"{directory} was started from another {changed}",
            hint="Give --out another directory, or remove that one and the arms that use its student.",
        )
    directory.mkdir(parents=True, exist_ok=True)
    write_json(record, inputs)
    if not (directory / "student" / "README.md").is_file():  # the last file that a run writes
        console.info(f"seed {seed}, {recipe.name}: {study.arms[recipe.name].label}")
        run(recipe, directory)


def _arm_inputs(study: Study, recipe: Recipe, runs: Path) -> dict[str, str]:
    """Hashes of everything an arm's result depends on: recipe, data, and students of earlier arms."""
    return {
        "recipe": recipe_hash(recipe),
        "data": read_json(runs / "data" / "made.json"),
        **{arm: _weights_hash(runs / arm / "student") for arm in required_arms(study, recipe.name)},
    }


def _weights_hash(student: Path) -> str:
    return sha256_json([[p.name, sha256_file(p)] for p in sorted(student.glob("*.safetensors"))])


def _tests_hash(study: Study, student: Path) -> str:
    """A hash of everything that the answers to the tests depend on."""
    verifiers = [asdict(verifier) for verifier in study.verifiers]
    return sha256_json([study.tests, asdict(study.answers), verifiers, _weights_hash(student)])


def _answer_tests(study: Study, runs: Path, name: str, seed: int, data: Path) -> None:
    """Writes an arm's scored answers to every test, sampled with the same seeds for all arms."""
    from stillhouse.corpus import load_prompts
    from stillhouse.evaluate import Candidate, judge_answers
    from stillhouse.models import load_weights
    from stillhouse.verifiers import open_verifiers

    path, tests_hash = runs / name / "tests.json", _tests_hash(study, runs / name / "student")
    if path.is_file() and read_json(path)["asked"] == tests_hash:
        return
    answers_by_test: dict[str, Any] = {}
    if not study.tests:
        atomic_write(path, json.dumps({"asked": tests_hash, "answers": answers_by_test}))
        return
    weights = load_weights(str(runs / name / "student"))
    with (
        open_verifiers(study.verifiers) as verifiers,
        console.progress("tests", len(study.tests)) as progress,
    ):
        for test, source in study.tests.items():
            prompts = load_prompts(source.replace("{data}", str(data)))
            answers = judge_answers(
                Candidate("student", name, weights), prompts, study.answers, verifiers, seed=seed
            )
            answers_by_test[test] = [
                {"question": prompt.question[-1]["content"], "group": prompt.tags.get("dataset", "")}
                | asdict(answer)
                for prompt, answer in zip(prompts, answers, strict=True)
            ]
            progress.advance()
    atomic_write(path, json.dumps({"asked": tests_hash, "answers": answers_by_test}))


def _finished_seeds(study: Study, directory: Path) -> list[int]:
    """Seeds for which every arm of this study has answered these tests, in this or another process."""
    seeds = []
    for runs in directory.glob("seed-*"):
        number = runs.name.removeprefix("seed-")
        if number.isdigit() and all(_is_finished(study, runs, name, int(number)) for name in study.arms):
            seeds.append(int(number))
    return sorted(seeds)


def _is_finished(study: Study, runs: Path, name: str, seed: int) -> bool:
    record, answers = runs / name / "origin.json", runs / name / "tests.json"
    if not (record.is_file() and answers.is_file() and (runs / "data" / "made.json").is_file()):
        return False
    recipe = arm_recipe(study, name, seed, runs / "data", runs)
    same = read_json(record) == _arm_inputs(study, recipe, runs)
    return same and read_json(answers)["asked"] == _tests_hash(study, runs / name / "student")


def _results(study: Study, runs: Path) -> dict[str, Any]:
    """The test results and costs of each arm of one seed, by name."""
    costs = {name: _cost(runs / name) for name in study.arms}
    results = {}
    for name in study.arms:
        before = sum(costs[arm]["flops"] for arm in required_arms(study, name))
        cost = costs[name] | {"flops_with_those_before": before + costs[name]["flops"]}
        results[name] = _test_results(runs / name) | cost
    return results


def _test_results(directory: Path) -> dict[str, Any]:
    """An arm's mean scores and examples for each test, and the curves of its on-policy rounds."""
    tests = read_json(directory / "tests.json")["answers"]
    return {
        "tests": {
            test: {
                key: sum(row[own_key] for row in rows) / len(rows)
                for key, own_key in (
                    ("pass_at_1", "first"),
                    ("consensus_at_k", "vote"),
                    ("thought", "thought"),
                    ("tokens", "tokens"),
                )
            }
            for test, rows in tests.items()
        },
        "examples": {
            test: [{"question": row["question"], "answer": row["example"]} for row in rows[:EXAMPLES]]
            for test, rows in tests.items()
        },
        "report": _report_measures(directory),
        "curves": _curves(directory / "on_policy" / "metrics.jsonl"),
    }


def _report_measures(directory: Path) -> dict[str, float]:
    """The student's own measures in an arm's report, without those that were not taken."""
    models = read_json(directory / "report.json")["models"]
    student = next(model for model in models if model["key"] == "student")
    return {measure: student[measure]["value"] for measure in REPORT_MEASURES if student.get(measure)}


def _cost(directory: Path) -> dict[str, float]:
    """Operations and CPU seconds of one arm, without evaluation.

    Operations are those of the models' matrix products, from the token counts that the run recorded: two per
    parameter and token read or written, six per token trained on (four with adapters). The products of
    attention (a few per cent at a hundred tokens) are not included. A prompt counts once per group when it is
    answered, and once per sample when it is trained on. An API counts as zero, and several teachers count as
    the main one. For a run that was interrupted, seconds are those of the last process.
    """
    from stillhouse.models import describe

    manifest, recipe = Manifest.load(directory), load_run_recipe(directory)
    student = shape_of(describe(str(directory / "student")))
    facts = describe(recipe.teacher.model)
    teacher = None if facts.kind == "api" else shape_of(facts)

    def training(read: float, learned: float) -> float:
        full = recipe.student.lora is None
        return training_flops(student, read, context=0, head_tokens=learned, weights=full, head=full)

    def forward(shape: Shape | None, read: float, learned: float) -> float:
        return 0.0 if shape is None else forward_flops(shape, read, context=0, head_tokens=learned)

    offline = _metrics(directory / "metrics.jsonl")
    read, learned = (sum(row[key] for row in offline) for key in ("tokens", "counted"))
    flops = training(read, learned)
    if offline and manifest.facts("targets").get("cached"):
        flops += forward(teacher, read / max(1.0, recipe.train.epochs), learned)
    elif offline and recipe.objective.targets == "online" and recipe.objective.needs_teacher:
        flops += forward(teacher, read, learned)
    settings = recipe.on_policy
    for row in _metrics(directory / "on_policy" / "metrics.jsonl"):
        assert settings is not None
        steps = 1 if row.get("off_policy") else settings.policy.inner_steps
        flops += steps * training(row["read"], row["learned"])
        if row.get("off_policy"):
            continue
        flops += forward(student, row["prompt_tokens"] + row["tokens"], row["tokens"])
        if settings.policy.reference_kl:
            flops += forward(student, row["read"], row["learned"])
        if settings.teacher > 0:
            flops += forward(teacher, row["read"], row["learned"])
    collected = manifest.facts("collect")
    completions = collected["completion_tokens"]
    # The manifest counts a prompt for each of its samples; the teacher reads it once.
    prompts = collected["prompt_tokens"] / recipe.collect.samples
    flops += forward(teacher, prompts + completions, completions)
    seconds = sum(manifest.facts(stage).get("cpu_seconds", 0.0) for stage in COSTED_STAGES)
    return {"flops": flops, "cpu_seconds": seconds, "parameters": student.parameters}


def _curves(path: Path) -> dict[str, list[float]]:
    rows = _metrics(path)
    return {
        key: [row[key] for row in rows if key in row] for key in CURVES if any(key in row for row in rows)
    }


def _metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``; empty if the recipe does not have the stage."""
    return read_json_lines(path) if path.is_file() else []
