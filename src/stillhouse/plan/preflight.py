"""Checks a recipe against its models, its verifiers and the machine before a run costs anything.

Reads configuration files and headers; loads no weights. The stages themselves check what
needs weights (importance of layers, memory of a pass).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from stillhouse.errors import MissingExtraError, ModelError, RecipeError
from stillhouse.plan.teacher_templates import check_teacher_templates
from stillhouse.recipe import Lora, Recipe, Student
from stillhouse.recipe.suggest import did_you_mean

if TYPE_CHECKING:
    from stillhouse.models import ModelInfo

CHECKED = ("filter", "student", "train")
"""The stages that can be checked in advance."""

_USUAL_LINEARS = ("gemma", "gemma2", "gemma3_text", "llama", "mistral", "qwen2", "qwen3", "smollm3")
"""Architectures (`model_type`) whose linear layers are those of :class:`Lora`'s default."""


def preflight(recipe: Recipe, stages: Collection[str] = CHECKED) -> None:
    """Raises the errors that one of ``stages`` would raise only after the teacher has answered.

    Raises:
        RecipeError: a teacher's chat template refuses its system prompt, a verifier does not load, pruning
            keeps more than the model has, the device does not exist, or adapters name layers that the student
            does not have.
        ModelError: the model cannot be pruned this way, or is damaged.
        ModelNotFoundError: the model does not exist.
        MissingExtraError: a package that the recipe needs is not installed.
        CorpusError: a file of the teacher's context is missing or invalid.
    """
    if "filter" in stages:
        from stillhouse.verifiers import check_verifiers

        check_teacher_templates(recipe)
        check_verifiers(recipe.verifiers)
    if "student" in stages and recipe.student.init == "prune":
        from stillhouse.models import describe

        _check_pruning(recipe.student, describe(recipe.student.model or recipe.teacher.model))
    if "train" in stages:
        if recipe.student.lora is not None:
            _check_adapters(recipe.student.lora, _model_type(recipe))
        if recipe.train.device not in ("auto", "cpu"):
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


def _model_type(recipe: Recipe) -> Any:
    """The student's architecture."""
    from stillhouse.models import describe

    if recipe.student.init == "scratch":
        return recipe.student.config.get("model_type")
    return describe(recipe.student.model or recipe.teacher.model).model_type


def _check_adapters(lora: Lora, model_type: Any) -> None:
    if importlib.util.find_spec("peft") is None:
        raise MissingExtraError(
            "student.lora needs the package peft", hint='Install it with: pip install "stillhouse[lora]"'
        )
    if model_type not in _USUAL_LINEARS:
        return  # the layer names of other architectures are not known before the weights are loaded
    linears = Lora().targets
    for target in lora.targets:
        if target not in linears:
            raise RecipeError(
                f"student.lora.targets: a {model_type} model has no linear layer named {target!r}",
                hint=did_you_mean(target, linears) or f"It has {', '.join(linears)}.",
            )
