"""Checks a recipe against its models, its verifiers and the machine before a run costs anything.

Reads configuration files and headers, and tries small random copies of the models; loads no weights. The
stages themselves check what needs weights (importance of layers, memory of a pass).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from stillhouse.errors import ModelError, RecipeError
from stillhouse.plan.architectures import try_student, try_teachers
from stillhouse.plan.teacher_templates import check_teacher_templates
from stillhouse.recipe import Recipe, Student

if TYPE_CHECKING:
    from stillhouse.models import ModelInfo

CHECKED = ("filter", "student", "train")
"""The stages that can be checked in advance."""


def preflight(recipe: Recipe, stages: Collection[str] = CHECKED) -> None:
    """Raises the errors that one of ``stages`` would raise only after the teacher has answered.

    Raises:
        RecipeError: a teacher's chat template refuses its system prompt, a verifier does not load, pruning
            keeps more than the model has, the device does not exist, `student.config` is invalid, or
            adapters name layers that the student does not have.
        ModelError: the model cannot be pruned this way, is damaged, or a small copy of its architecture
            cannot be trained, sampled, or saved and loaded again.
        ModelNotFoundError: the model does not exist.
        MissingExtraError: a package that the recipe needs is not installed.
        CorpusError: a file of the teacher's context is missing or invalid.
    """
    if "filter" in stages:
        from stillhouse.verifiers import check_verifiers

        check_teacher_templates(recipe)
        check_verifiers(recipe.verifiers)
        try_teachers(recipe)
    if "student" in stages and recipe.student.init == "prune":
        from stillhouse.models import describe

        _check_pruning(recipe.student, describe(recipe.student.model or recipe.teacher.model))
    if "student" in stages or "train" in stages:
        try_student(recipe)
    if "train" in stages and recipe.train.device not in ("auto", "cpu"):
        from stillhouse.distill import choose_device

        choose_device(recipe.train.device)


def _check_pruning(student: Student, parent: ModelInfo) -> None:
    config = parent.config.get("text_config", parent.config)
    if student.keep is not None and parent.layers is not None and student.keep[-1] >= parent.layers:
        raise RecipeError(
            f"student.keep: there is no layer {student.keep[-1]}; "
            f"{parent.reference} has layers 0 to {parent.layers - 1}"
        )
    heads = config.get("num_key_value_heads") or config.get("num_attention_heads")
    sizes = {
        "layers": (parent.layers, "layers"),
        "intermediate": (config.get("intermediate_size"), "MLP neurons"),
        "heads": (heads, "key-value head groups"),
        "hidden": (parent.hidden_size, "hidden channels"),
    }
    for key, (most, noun) in sizes.items():
        kept = getattr(student, key)
        if kept is not None and isinstance(most, int) and kept > most:
            raise RecipeError(
                f"student.{key}: cannot keep {kept} {noun}: {parent.reference} has {most}",
                hint=f"At most {most}.",
            )
    if student.hidden is not None and str(parent.model_type).startswith("gemma"):
        raise ModelError(
            f"student.hidden: hidden channels of a {parent.model_type} model cannot be removed, "
            "because it scales its embeddings by their number",
            hint="Remove layers, neurons or heads instead.",
        )
