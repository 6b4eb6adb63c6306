"""Which teacher teaches what, where a recipe has several, and the rules for that.

Teachers have numbers: 0 is the main one (`teacher`), 1 the first of `teachers`, and so on. The
first whose `route` fits a prompt's tags is alone responsible for it; for all other prompts it is
the main teacher, whose distributions are averaged with those of the teachers that have no route.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stillhouse.recipe.sections import Recipe, Teacher

Complaint = tuple[str, str]


def all_teachers(recipe: Recipe) -> tuple[Teacher, ...]:
    """The main teacher, and the others in the recipe's order."""
    return (recipe.teacher, *recipe.teachers)


def teacher_number(recipe: Recipe, tags: Mapping[str, Any]) -> int:
    """The number of the teacher that answers a prompt with these tags; values are compared as text."""
    for number, teacher in enumerate(recipe.teachers, start=1):
        if teacher.route and all(str(tags.get(key)) == str(value) for key, value in teacher.route.items()):
            return number
    return 0


def teacher_shares(recipe: Recipe, number: int) -> dict[int, float]:
    """Whose distributions teach the prompts of teacher ``number``, by number; the shares sum to 1."""
    if number:
        return {number: 1.0}
    members = {0: recipe.teacher} | {n: t for n, t in enumerate(recipe.teachers, start=1) if not t.route}
    total = sum(teacher.weight for teacher in members.values())
    return {n: teacher.weight / total for n, teacher in members.items()}


def averages(recipe: Recipe) -> bool:
    """Whether the main teacher's distributions are averaged with others'."""
    return len(teacher_shares(recipe, 0)) > 1


def teacher_rules(recipe: Recipe) -> Iterator[Complaint]:
    """What is wrong with the recipe's teachers, by dotted key."""
    if recipe.teacher.route:
        yield "teacher.route", "the main teacher has all prompts that are no other's; put it into `teachers`"
    if recipe.teachers and recipe.objective.joins_tokenizers:
        yield "teachers", "with `uld` and `align: spans` there can be one teacher only"
    routes: list[Any] = []
    for number, teacher in enumerate(recipe.teachers):
        key = f"teachers.{number}"
        yield from _context(teacher, key)
        if not teacher.route:
            yield from _averaged(recipe, teacher, key)
        elif teacher.weight != Teacher.weight:
            yield f"{key}.weight", "has no meaning with `route`: such a teacher is alone with its prompts"
        elif teacher.route in routes:
            yield f"{key}.route", "is that of an earlier teacher, which has these prompts"
        routes.append(teacher.route)
    if not averages(recipe) and recipe.teacher.weight != Teacher.weight:
        yield "teacher.weight", "has no meaning without one of `teachers` that has no `route`"
    yield from _context(recipe.teacher, "teacher")


def _averaged(recipe: Recipe, teacher: Teacher, key: str) -> Iterator[Complaint]:
    """Rules for a teacher whose distributions are mixed with the main one's, and whose text nobody reads."""
    objective = recipe.objective
    if teacher.model.startswith("api:"):
        yield f"{key}.model", "an API has no distributions to average: give it a `route`"
    if not objective.needs_teacher:
        yield (
            key,
            "without a `route` its distributions are averaged; `cross_entropy` reads none",
        )
    elif objective.targets in ("topk", "sampled"):
        yield (
            "objective.targets",
            f"`{objective.targets}` of several teachers cannot be averaged: use `hidden` or `online`",
        )
    if teacher.context == "shared" and (teacher.system is not None or teacher.examples is not None):
        yield f"{key}.context", "the text is the main teacher's; what only this one sees must be `private`"


def _context(teacher: Teacher, key: str) -> Iterator[Complaint]:
    if teacher.context == "private" and teacher.system is None and teacher.examples is None:
        yield (
            f"{key}.context",
            "`private` needs something that only the teacher sees: `system` or `examples`",
        )
