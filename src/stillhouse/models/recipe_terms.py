"""The licence terms that apply to a recipe's models, from headers and model cards, without weights."""

from __future__ import annotations

from stillhouse.models.metadata import describe
from stillhouse.provenance import Terms, find_terms
from stillhouse.recipe import Recipe
from stillhouse.recipe.teachers import all_teachers


def recipe_terms(recipe: Recipe) -> tuple[tuple[Terms, ...], Terms | None]:
    """The terms of the teachers, and of the weights that the student starts from (None from scratch)."""
    teachers = tuple(terms_of(teacher.model, declared=teacher.terms) for teacher in all_teachers(recipe))
    student = recipe.student
    if student.init == "scratch":
        return teachers, None
    return teachers, teachers[0] if student.model is None else terms_of(student.model)


def terms_of(reference: str, *, declared: str | None = None) -> Terms:
    """The terms that the model's files indicate, or its name alone."""
    return find_terms(reference, declared=declared, metadata=describe(reference).metadata)
