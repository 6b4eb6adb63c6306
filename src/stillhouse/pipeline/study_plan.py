"""Plans a study: the cost of every arm and of its tests for one seed, times the number of seeds.

The data of the first seed is made (in a temporary directory, unless a run has made it), because the prompts
decide the costs. An arm that starts from another arm's student is planned with a stand-in of its shape.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stillhouse.console import console
from stillhouse.pipeline.study_data import check_tests, make_data
from stillhouse.recipe import Recipe
from stillhouse.recipe.study import Study, arm_recipe

if TYPE_CHECKING:
    from stillhouse.models import ModelInfo
    from stillhouse.plan import Machine, RunPlan
    from stillhouse.provenance import Terms

TOKENIZER_FILES = ("tokenizer*", "chat_template*", "special_tokens_map.json", "generation_config.json")


@dataclass(frozen=True)
class ArmPlan:
    """The estimated cost of one arm for one seed."""

    name: str
    label: str
    recipe: Recipe
    run: RunPlan
    tests_seconds: float
    """Sampling and scoring the answers to all tests."""
    terms: tuple[Terms, ...]
    """Terms of the arm's teachers."""
    start: Terms | None
    """Terms of the student's starting weights."""
    missing_keys: tuple[str, ...]
    """Environment variables of API keys that are not set."""

    @property
    def seconds(self) -> float:
        """Time of the run and of its tests."""
        return self.run.seconds + self.tests_seconds


@dataclass(frozen=True)
class StudyPlan:
    """The estimated cost of a study."""

    arms: tuple[ArmPlan, ...]
    seeds: int

    @property
    def seconds(self) -> float:
        """Time of all arms for all seeds, one after another."""
        return self.seeds * sum(arm.seconds for arm in self.arms)

    @property
    def peak_memory_bytes(self) -> int:
        """Memory of the arm that needs most."""
        return max(arm.run.peak_memory_bytes for arm in self.arms)

    @property
    def dollars(self) -> float | None:
        """Cost of the APIs for all seeds; None if a recipe does not state their prices."""
        costs = [arm.run.dollars for arm in self.arms]
        return None if None in costs else self.seeds * sum(cost for cost in costs if cost is not None)


def plan_study(study: Study, file: Path, directory: Path, machine: Machine | None = None) -> StudyPlan:
    """Plans every arm of a study for its first seed.

    Args:
        file: the study's own file, for messages.
        directory: the study's directory, whose data is used if it was made already.
        machine: by default this machine is measured for about a second.

    Raises:
        StillhouseError: as :func:`stillhouse.plan.plan` and :func:`.study_data.make_data`.
    """
    from stillhouse.plan.machine import measure_machine

    seed, machine = study.seeds[0], machine or measure_machine()
    made = directory / f"seed-{seed}"
    with tempfile.TemporaryDirectory(prefix="still-plan-") as temporary:
        runs = Path(temporary)
        if (made / "data" / "made.json").is_file():
            data = make_data(study, file, seed, made / "data")
        else:
            if study.make is not None:
                console.info(f"making the data of seed {seed} in a temporary directory")
            data = make_data(study, file, seed, runs / "data")
        check_tests(study, file, data)
        arms = []
        for name, arm in study.arms.items():
            recipe = arm_recipe(study, name, seed, data, runs)
            arms.append(_plan_arm(study, name, arm.label, recipe, data, machine))
            _stand_in(recipe, runs / name / "student")
    return StudyPlan(tuple(arms), len(study.seeds))


def _plan_arm(study: Study, name: str, label: str, recipe: Recipe, data: Path, machine: Machine) -> ArmPlan:
    from stillhouse.corpus import load_prompts
    from stillhouse.models import recipe_terms
    from stillhouse.plan.run_plan import missing_keys, plan_from, plan_inputs
    from stillhouse.plan.stage_costs import answering_seconds
    from stillhouse.plan.workload import CHARS_PER_TOKEN

    inputs = plan_inputs(recipe, machine)
    seconds = 0.0
    for source in study.tests.values():
        prompts = load_prompts(source.replace("{data}", str(data)))
        letters = sum(len(str(message.get("content") or "")) for p in prompts for message in p.question)
        read = letters / CHARS_PER_TOKEN
        seconds += answering_seconds(
            inputs.student, len(prompts), read, study.answers, study.verifiers, machine
        )
    terms, start = recipe_terms(recipe)
    return ArmPlan(name, label, recipe, plan_from(inputs), seconds, terms, start, missing_keys(recipe))


def _stand_in(recipe: Recipe, student: Path) -> None:
    """Writes a model directory with the configuration and tokenizer of the arm's student, for later arms."""
    from stillhouse.models import describe, parse_reference

    settings = recipe.student
    reference = parse_reference(settings.model or settings.tokenizer or recipe.teacher.model)
    student.mkdir(parents=True)
    if reference.path is not None and reference.path.is_dir():
        for pattern in TOKENIZER_FILES:
            for path in reference.path.glob(pattern):
                (student / path.name).symlink_to(path.absolute())
    config = _config(recipe, describe(reference.text))
    (student / "config.json").write_text(json.dumps(config))


def _config(recipe: Recipe, parent: ModelInfo) -> dict[str, object]:
    settings = recipe.student
    if settings.init == "scratch":
        return {"vocab_size": settings.vocabulary or parent.vocab_size, **settings.config}
    layers = len(settings.keep) if settings.keep is not None else settings.layers
    changes = {
        "num_hidden_layers": layers,
        "intermediate_size": settings.intermediate,
        "num_key_value_heads": settings.heads,
        "hidden_size": settings.hidden,
    }
    text = parent.config.get("text_config", parent.config)
    return {**text, **{key: value for key, value in changes.items() if value is not None}}
