"""Checks that the chat templates take what a recipe puts before a conversation, before a teacher answers.

Reads tokenizers, no weights. APIs apply their own templates, which cannot be checked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stillhouse.errors import ModelError, RecipeError
from stillhouse.recipe import Recipe
from stillhouse.recipe.teachers import all_teachers, template_variables

if TYPE_CHECKING:
    from stillhouse.corpus import Context

_QUESTION = [{"role": "user", "content": "x"}]


def check_teacher_templates(recipe: Recipe) -> None:
    """Renders a question with each teacher's context and variables.

    Raises:
        RecipeError: a chat template refuses the system prompt or the examples, or does not read a variable.
        ModelError, ModelNotFoundError: a model is damaged, or does not exist.
        CorpusError: a file of the teacher's context is missing or invalid.
    """
    from stillhouse.corpus import load_context
    from stillhouse.models import load_tokenizer

    for number, teacher in enumerate(all_teachers(recipe)):
        key = f"teachers.{number - 1}" if number else "teacher"
        context, variables = load_context(teacher), template_variables(teacher)
        if teacher.model.startswith("api:") or not (context or variables):
            continue
        _, template = load_tokenizer(teacher.model)
        try:
            template.require_variables(variables)
        except ModelError as error:
            raise RecipeError(f"{key}: {teacher.model}: {error}", hint=error.hint) from error
        try:
            template.render(context.for_teacher(_QUESTION), add_generation_prompt=True, **variables)
        except ModelError as error:
            raise RecipeError(
                f"{key}.{_part(context)}: {teacher.model} does not take it: {error}",
                hint="Write the instructions into the prompts, or use a teacher whose template takes them.",
            ) from error


def _part(context: Context) -> str:
    return "system" if context.system else "examples"
