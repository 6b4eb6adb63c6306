"""A study's arms for every seed, one run each, measured on the same tests; what was done is kept.

    <study>/seed-1/data/        what `make` wrote
    <study>/seed-1/<arm>/       a run's directory, and tests.json: what its student answered to every test
    <study>/study.json  study.html

Seeds do not depend on each other, so several processes may run a study's seeds side by side in the same
directory (`--seeds`); the last of them to end writes the report of all that are there.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..console import console
from ..errors import RecipeError
from ..files import atomic_write, read_json, read_json_lines, write_json
from ..hashing import sha256_json
from ..plan.costs import forward_flops, training_flops
from ..plan.shapes import shape_of
from ..provenance import Manifest, versions
from ..recipe import Recipe
from ..recipe_file import dump_recipe, load_recipe
from ..study import Study, arm_recipe, learned_from

LEARNING = ("collect", "filter", "select", "student", "targets", "train", "control", "on_policy")
"""The stages whose time is an arm's cost; measuring is not."""
CURVES = ("reward", "length", "entropy")
EXAMPLES = 6
"""Questions of each test whose answers are shown."""

RunRecipe = Callable[[Recipe, Path], Any]


def run_study(study: Study, file: Path, directory: Path, run: RunRecipe) -> dict[str, Any]:
    """Runs what is not there yet and returns the results (see :func:`..evaluate.study.study_results`).

    Args:
        file: the study's own file; `make` stands beside it.
        run: :func:`stillhouse.pipeline.run`.

    Raises:
        RecipeError: `make` cannot be loaded, or an arm's directory holds another recipe.
    """
    from ..evaluate import study_page, study_results

    for seed in study.seeds:
        runs = directory / f"seed-{seed}"
        data = _made(study, file, seed, runs / "data")
        for name in study.arms:
            recipe = arm_recipe(study, name, seed, data, runs)
            _finish(study, recipe, runs / name, seed, run)
            _answer_tests(study, runs, name, seed, data)
    found = {seed: _measured(study, directory / f"seed-{seed}") for seed in _finished_seeds(study, directory)}
    results = study_results(study, found) | {"environment": versions()}
    write_json(directory / "study.json", results)
    atomic_write(directory / "study.html", study_page(results))
    return results


def _made(study: Study, file: Path, seed: int, data: Path) -> Path:
    """The seed's data, made once; refused when the code or settings that made it have changed."""
    source = file.parent / study.make
    if not source.is_file():
        raise RecipeError(f"{file}: make: there is no {source}")
    wanted = sha256_json([source.read_text("utf-8"), study.settings, seed])
    mark = data / "made.json"
    if mark.is_file():
        if read_json(mark) == wanted:
            return data
        raise RecipeError(
            f"{data} was made by other code or settings than {source} has now",
            hint="Give --out another directory, or remove that one.",
        )
    shutil.rmtree(data, ignore_errors=True)
    with console.progress(f"making the data of seed {seed}", None):
        _load(source).make(data, seed, dict(study.settings))
    atomic_write(mark, json.dumps(wanted))
    return data


def _load(source: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"study_{source.stem}", source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for the names in their annotations
    spec.loader.exec_module(module)
    if not callable(getattr(module, "make", None)):
        raise RecipeError(f"{source} has no function `make(directory, seed, settings)`")
    return module


def _finish(study: Study, recipe: Recipe, place: Path, seed: int, run: RunRecipe) -> None:
    """Runs an arm as far as it is not done."""
    before = place / "recipe.yaml"
    if before.is_file() and before.read_text("utf-8") != dump_recipe(recipe):
        raise RecipeError(
            f"{place} holds an arm of another recipe",
            hint="Give --out another directory, or remove that one and those that learned from it.",
        )
    if not (place / "student" / "README.md").is_file():
        console.info(f"seed {seed}, {recipe.name}: {study.arms[recipe.name].label}")
        run(recipe, place)


def _answer_tests(study: Study, runs: Path, name: str, seed: int, data: Path) -> None:
    """Writes what the arm's student answers to every test, judged, with the same draws for all arms."""
    from ..corpus import load_prompts
    from ..evaluate import Candidate, judge_answers
    from ..models import load_weights
    from ..verifiers import open_verifier

    place = runs / name / "tests.json"
    if place.is_file():
        return
    weights = load_weights(str(runs / name / "student"))
    judged: dict[str, Any] = {}
    with open_verifier(study.verifiers) as verifiers, console.progress("tests", len(study.tests)) as progress:
        for test, source in study.tests.items():
            prompts = load_prompts(source.replace("{data}", str(data)))
            answers = judge_answers(
                Candidate("student", name, weights), prompts, study.answers, verifiers, seed=seed
            )
            judged[test] = [
                {"question": prompt.question[-1]["content"], "group": prompt.tags.get("dataset", "")}
                | asdict(answer)
                for prompt, answer in zip(prompts, answers, strict=True)
            ]
            progress.advance()
    atomic_write(place, json.dumps(judged))


def _finished_seeds(study: Study, directory: Path) -> list[int]:
    """The seeds of which every arm has answered the tests, whoever ran them."""
    found = []
    for place in directory.glob("seed-*"):
        number = place.name.removeprefix("seed-")
        if number.isdigit() and all((place / name / "tests.json").is_file() for name in study.arms):
            found.append(int(number))
    return sorted(found)


def _measured(study: Study, runs: Path) -> dict[str, Any]:
    """What each arm of one seed came to, by name."""
    spent = {name: _spent(runs / name) for name in study.arms}
    found = {}
    for name in study.arms:
        before = sum(spent[arm]["flops"] for arm in learned_from(study, name))
        cost = spent[name] | {"flops_with_those_before": before + spent[name]["flops"]}
        found[name] = _answered(runs / name) | cost
    return found


def _answered(place: Path) -> dict[str, Any]:
    """An arm's answers to the tests, and the curves of its rounds."""
    tests = read_json(place / "tests.json")
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
        "curves": _curves(place / "on_policy" / "metrics.jsonl"),
    }


def _spent(place: Path) -> dict[str, float]:
    """Operations and processor seconds of one arm, measuring left out.

    Operations are those of the models' matrix products, counted from the tokens that the run wrote down: two
    a parameter and token read or written, six learned from; attention's own products (a few per cent at a
    hundred tokens) are left out. Seconds of a run that was interrupted are those of the last sitting.
    """
    from ..models import describe

    manifest = Manifest.load(place)
    student = shape_of(describe(str(place / "student")))
    flops = 0.0
    offline = _lines(place / "metrics.jsonl")
    for row in offline:
        flops += training_flops(
            student, row["tokens"], context=0, head_tokens=row["counted"], weights=True, head=True
        )
    recipe = load_recipe(place / "recipe.yaml")
    teacher = shape_of(describe(recipe.teacher.model))
    taught = recipe.on_policy is not None and recipe.on_policy.teacher > 0
    for row in _lines(place / "on_policy" / "metrics.jsonl"):
        if row.get("off_policy"):
            continue
        written, read = row["tokens"], row["read"]
        flops += forward_flops(student, row["prompt_tokens"] + written, context=0, head_tokens=written)
        flops += training_flops(student, read, context=0, head_tokens=written, weights=True, head=True)
        if taught:
            flops += forward_flops(teacher, read, context=0, head_tokens=written)
    collected = manifest.facts("collect")
    if not collected["imported"]:
        tokens = collected["prompt_tokens"] + collected["completion_tokens"]
        flops += forward_flops(teacher, tokens, context=0, head_tokens=collected["completion_tokens"])
    if manifest.facts("targets").get("cached"):
        documents = sum(row["tokens"] for row in offline)
        flops += forward_flops(teacher, documents, context=0, head_tokens=documents)
    seconds = sum(manifest.facts(stage).get("cpu_seconds", 0.0) for stage in LEARNING)
    return {"flops": flops, "cpu_seconds": seconds, "parameters": student.parameters}


def _curves(path: Path) -> dict[str, list[float]]:
    rows = _lines(path)
    return {
        key: [row[key] for row in rows if key in row] for key in CURVES if any(key in row for row in rows)
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    """A file of metrics; none where the stage had nothing to do."""
    return read_json_lines(path) if path.is_file() else []
