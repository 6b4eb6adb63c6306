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
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from stillhouse.console import console
from stillhouse.errors import RecipeError, StillhouseError
from stillhouse.files import atomic_write, read_json, read_json_lines, write_json
from stillhouse.hashing import sha256_file, sha256_json
from stillhouse.plan.costs import forward_flops, training_flops
from stillhouse.plan.shapes import Shape, shape_of
from stillhouse.provenance import Manifest, versions
from stillhouse.recipe import Recipe
from stillhouse.recipe.load import load_recipe, recipe_hash
from stillhouse.recipe.study import Study, arm_recipe, learned_from

LEARNING = ("collect", "filter", "select", "student", "targets", "train", "on_policy")
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
    from stillhouse.evaluate import study_page, study_results

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
        _make(source, data, seed, study.settings)
    atomic_write(mark, json.dumps(wanted))
    return data


def _make(source: Path, data: Path, seed: int, settings: Mapping[str, Any]) -> None:
    try:
        _load(source).make(data, seed, dict(settings))
    except StillhouseError:
        raise
    except Exception as error:  # whatever the user's own code says
        hint = "See its traceback with --debug."
        if isinstance(error, ModuleNotFoundError):
            hint = f"Install {error.name}; reasoning-gym comes with `pip install 'stillhouse[reasoning]'`."
        raise RecipeError(f"{source}: {type(error).__name__}: {error}", hint=hint) from error


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
    """Runs an arm as far as it is not done; refuses one that was begun from something else."""
    origin, mark = _origin(study, recipe, place.parent), place / "origin.json"
    if mark.is_file() and (before := read_json(mark)) != origin:
        changed = ", ".join(key for key in origin if before.get(key) != origin[key])
        raise RecipeError(
            f"{place} was begun from another {changed}",
            hint="Give --out another directory, or remove that one and those that learned from it.",
        )
    place.mkdir(parents=True, exist_ok=True)
    write_json(mark, origin)
    if not (place / "student" / "README.md").is_file():
        console.info(f"seed {seed}, {recipe.name}: {study.arms[recipe.name].label}")
        run(recipe, place)


def _origin(study: Study, recipe: Recipe, runs: Path) -> dict[str, str]:
    """Hashes of all that an arm's result depends on: recipe, data, and the students that it learned from."""
    return {
        "recipe": recipe_hash(recipe),
        "data": read_json(runs / "data" / "made.json"),
        **{arm: _weights_hash(runs / arm / "student") for arm in learned_from(study, recipe.name)},
    }


def _weights_hash(student: Path) -> str:
    return sha256_json([[p.name, sha256_file(p)] for p in sorted(student.glob("*.safetensors"))])


def _asked(study: Study, student: Path) -> str:
    """A hash of all that the answers to the tests depend on."""
    kinds = [asdict(verifier) for verifier in study.verifiers]
    return sha256_json([study.tests, asdict(study.answers), kinds, _weights_hash(student)])


def _answer_tests(study: Study, runs: Path, name: str, seed: int, data: Path) -> None:
    """Writes what the arm's student answers to every test, judged, with the same draws for all arms."""
    from stillhouse.corpus import load_prompts
    from stillhouse.evaluate import Candidate, judge_answers
    from stillhouse.models import load_weights
    from stillhouse.verifiers import open_verifiers

    place, asked = runs / name / "tests.json", _asked(study, runs / name / "student")
    if place.is_file() and read_json(place)["asked"] == asked:
        return
    weights = load_weights(str(runs / name / "student"))
    judged: dict[str, Any] = {}
    with (
        open_verifiers(study.verifiers) as verifiers,
        console.progress("tests", len(study.tests)) as progress,
    ):
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
    atomic_write(place, json.dumps({"asked": asked, "answers": judged}))


def _finished_seeds(study: Study, directory: Path) -> list[int]:
    """The seeds of which every arm of this study has answered these tests, whoever ran them."""
    found = []
    for place in directory.glob("seed-*"):
        number = place.name.removeprefix("seed-")
        if number.isdigit() and all(_is_done(study, place, name, int(number)) for name in study.arms):
            found.append(int(number))
    return sorted(found)


def _is_done(study: Study, runs: Path, name: str, seed: int) -> bool:
    mark, answers = runs / name / "origin.json", runs / name / "tests.json"
    if not (mark.is_file() and answers.is_file() and (runs / "data" / "made.json").is_file()):
        return False
    recipe = arm_recipe(study, name, seed, runs / "data", runs)
    same = read_json(mark) == _origin(study, recipe, runs)
    return same and read_json(answers)["asked"] == _asked(study, runs / name / "student")


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
    tests = read_json(place / "tests.json")["answers"]
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
    a parameter and token read or written, six learned from (four with adapters); attention's own products (a
    few per cent at a hundred tokens) are left out. A prompt counts once a group where it is answered, and for
    each sample where it is learned from. Behind an API nothing is counted, and several teachers count as the
    main one. Seconds of a run that was interrupted are those of the last sitting.
    """
    from stillhouse.models import describe

    manifest, recipe = Manifest.load(place), load_recipe(place / "recipe.yaml")
    student = shape_of(describe(str(place / "student")))
    facts = describe(recipe.teacher.model)
    teacher = None if facts.kind == "api" else shape_of(facts)

    def learning(read: float, learned: float) -> float:
        full = recipe.student.lora is None
        return training_flops(student, read, context=0, head_tokens=learned, weights=full, head=full)

    def passes(shape: Shape | None, read: float, learned: float) -> float:
        return 0.0 if shape is None else forward_flops(shape, read, context=0, head_tokens=learned)

    offline = _lines(place / "metrics.jsonl")
    read, learned = (sum(row[key] for row in offline) for key in ("tokens", "counted"))
    flops = learning(read, learned)
    if offline and manifest.facts("targets").get("cached"):
        flops += passes(teacher, read / max(1.0, recipe.train.epochs), learned)
    elif offline and recipe.objective.targets == "online" and recipe.objective.needs_teacher:
        flops += passes(teacher, read, learned)
    settings = recipe.on_policy
    for row in _lines(place / "on_policy" / "metrics.jsonl"):
        assert settings is not None
        times = 1 if row.get("off_policy") else settings.policy.inner_steps
        flops += times * learning(row["read"], row["learned"])
        if row.get("off_policy"):
            continue
        flops += passes(student, row["prompt_tokens"] + row["tokens"], row["tokens"])
        if settings.policy.reference_kl:
            flops += passes(student, row["read"], row["learned"])
        if settings.teacher > 0:
            flops += passes(teacher, row["read"], row["learned"])
    collected = manifest.facts("collect")
    written = collected["completion_tokens"]
    asked = collected["prompt_tokens"] / recipe.collect.samples
    flops += passes(teacher, asked + written, written)
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
