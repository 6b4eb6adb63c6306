"""Plans a recipe: tokens, memory, time and money, with the verdict on the teachers' terms.

Reads configuration files, headers and the prompts, and times this machine for about a
second; loads no weights, sends nothing to a teacher and writes nothing. On an idle machine
the estimates should be within a factor of two; if not, the usual reason is answers much
shorter or longer than assumed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stillhouse.plan.cost_formulas import Machine
from stillhouse.plan.machine import measure_machine
from stillhouse.plan.preflight import preflight
from stillhouse.plan.rendering import check_rendering
from stillhouse.plan.requirements import require_available
from stillhouse.plan.shapes import shape_of, student_shape
from stillhouse.plan.stage_costs import PlanInputs, StagePlan, plan_stages
from stillhouse.plan.workload import api_cost, estimate_workload
from stillhouse.recipe import Recipe
from stillhouse.recipe.teachers import all_teachers

if TYPE_CHECKING:
    from stillhouse.provenance import Terms, TermsVerdict

__all__ = ["Machine", "RunPlan", "StagePlan", "plan", "preflight"]


@dataclass(frozen=True)
class RunPlan:
    """The estimated cost of a run."""

    stages: tuple[StagePlan, ...]
    records: dict[str, Any]
    """What the records of `prompts.source` were read as, which columns are unused, what is rejected."""
    dollars: float | None
    """Cost of the APIs; None if the recipe does not state their prices."""
    terms: Terms
    """Terms of the (main) teacher."""
    verdict: TermsVerdict
    """Whether the terms of all teachers allow the purpose."""

    @property
    def seconds(self) -> float:
        """Time of all stages."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def peak_memory_bytes(self) -> int:
        """Memory of the stage that needs most."""
        return max(stage.memory_bytes for stage in self.stages)


def plan(recipe: Recipe, machine: Machine | None = None) -> RunPlan:
    """Plans ``recipe`` for ``machine``; by default measures this machine for about a second.

    Raises:
        RecipeError, CorpusError, ModelNotFoundError, ModelError, MissingExtraError: as a run raises them at
            its start.
    """
    return plan_from(plan_inputs(recipe, machine))


def plan_from(inputs: PlanInputs) -> RunPlan:
    """The plan for given inputs."""
    from stillhouse.models import recipe_terms
    from stillhouse.provenance import combine_verdicts, judge_terms

    recipe = inputs.recipe
    terms, start = recipe_terms(recipe)
    return RunPlan(
        stages=tuple(plan_stages(inputs)),
        records=inputs.records,
        dollars=api_cost(recipe, inputs.workload, inputs.prompts),
        terms=terms[0],
        verdict=combine_verdicts(judge_terms(entry, recipe.purpose, student=start) for entry in terms),
    )


def plan_inputs(recipe: Recipe, machine: Machine | None = None) -> PlanInputs:
    """Everything that the costs depend on; arguments and errors as for :func:`plan`."""
    from stillhouse.corpus import read_recipe_prompts, split_held_out
    from stillhouse.models import describe

    require_available(recipe)
    preflight(recipe)  # first, so that an invalid recipe fails before prompts are read
    source = recipe.prompts
    prompt_set = read_recipe_prompts(recipe)
    prompt_set.report()
    unrendered = check_rendering(recipe, prompt_set.prompts)
    ngram = recipe.filter.contamination_ngram
    train, held_out, _ = split_held_out(prompt_set.prompts, source.held_out, ngram=ngram, seed=recipe.seed)
    teacher_info = describe(recipe.teacher.model)
    teacher = shape_of(teacher_info) if teacher_info.kind != "api" else None
    parent = shape_of(describe(recipe.student.model)) if recipe.student.model else teacher
    tokenizer = describe(recipe.student.tokenizer) if recipe.student.tokenizer else teacher_info
    vocabulary = recipe.student.vocabulary or tokenizer.vocab_size
    student = student_shape(recipe.student, parent, vocab=vocabulary)
    train = train if recipe.needs_answers else []
    workload = estimate_workload(recipe, train, held_out)
    others = [describe(other.model) for other in recipe.teachers]
    return PlanInputs(
        recipe,
        teacher_info,
        teacher,
        student,
        workload,
        machine or measure_machine(),
        tuple(shape_of(info) for info in others if info.kind != "api"),
        (*train, *held_out),
        prompt_set.facts | {"unrendered": unrendered},
    )


def missing_keys(recipe: Recipe) -> tuple[str, ...]:
    """The environment variables of API keys that a run of the recipe needs and that are not set."""
    from stillhouse.models import api_key_missing, parse_reference

    lacking = [t for t in all_teachers(recipe) if api_key_missing(parse_reference(t.model), t.api_key_env)]
    return tuple(dict.fromkeys(teacher.api_key_env for teacher in lacking))
