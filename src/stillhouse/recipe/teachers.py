"""Several teachers in one recipe: which one answers a prompt, how distributions are averaged, and the rules.

Teachers have numbers: 0 is the main teacher (`teacher`), 1 the first of `teachers`, and so on. A prompt
belongs to the first teacher whose `route` matches its tags, which then teaches it alone. All other prompts
belong to the main teacher, whose distributions are averaged with those of the teachers without a route.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stillhouse.recipe.sections import Recipe, Teacher

Complaint = tuple[str, str]

OWN_FIELDS = ("model", "messages", "stream", "n", "logprobs")
"""Fields of a request that the collection needs as they are."""
SAMPLING_KEYS = {
    "temperature": "collect.temperature",
    "top_p": "collect.top_p",
    "top_k": "collect.top_k",
    "max_tokens": "collect.max_tokens",
    "max_completion_tokens": "collect.max_tokens",
    "top_logprobs": "collect.top_logprobs",
    "seed": "seed",
}
"""Recipe keys of a request's sampling settings."""


def all_teachers(recipe: Recipe) -> tuple[Teacher, ...]:
    """The main teacher, then the others in the order of the recipe."""
    return (recipe.teacher, *recipe.teachers)


def teacher_number(recipe: Recipe, tags: Mapping[str, Any]) -> int:
    """The number of the teacher to which a prompt with these tags belongs; values are compared as text."""
    for number, teacher in enumerate(recipe.teachers, start=1):
        if teacher.route and all(str(tags.get(key)) == str(value) for key, value in teacher.route.items()):
            return number
    return 0


def teacher_shares(recipe: Recipe, number: int) -> dict[int, float]:
    """Weights of the teachers' distributions for prompts of teacher ``number``, by number; they sum to 1."""
    if number:
        return {number: 1.0}
    members = {0: recipe.teacher} | {n: t for n, t in enumerate(recipe.teachers, start=1) if not t.route}
    total = sum(teacher.weight for teacher in members.values())
    return {n: teacher.weight / total for n, teacher in members.items()}


def averages(recipe: Recipe) -> bool:
    """Whether the main teacher's distributions are averaged with those of others."""
    return len(teacher_shares(recipe, 0)) > 1


def template_variables(teacher: Teacher) -> dict[str, Any]:
    """The chat template's variables that the recipe sets for a teacher's answers."""
    names = ("enable_thinking", "reasoning_effort")
    return {name: value for name in names if (value := getattr(teacher, name)) is not None}


def request_options(teacher: Teacher) -> dict[str, Any]:
    """What decides a teacher's answers besides sampling and context; empty by default."""
    extra = {"extra_body": teacher.extra_body} if teacher.extra_body else {}
    return template_variables(teacher) | extra


def teacher_rules(recipe: Recipe) -> Iterator[Complaint]:
    """Complaints about the recipe's teachers, by dotted key."""
    if recipe.teacher.route:
        yield (
            "teacher.route",
            "the main teacher gets all prompts that match no route; move this teacher to `teachers`",
        )
    if recipe.teachers and recipe.objective.joins_tokenizers:
        yield "teachers", "`uld` and `align: spans` support one teacher only"
    routes: list[Any] = []
    for number, teacher in enumerate(recipe.teachers):
        key = f"teachers.{number}"
        yield from _context(teacher, key)
        yield from _requests(teacher, key)
        if not teacher.route:
            yield from _averaged(recipe, teacher, key)
        elif teacher.weight != Teacher.weight:
            yield f"{key}.weight", "has no effect with `route`: such a teacher teaches its prompts alone"
        elif teacher.route in routes:
            yield f"{key}.route", "is also the route of an earlier teacher, which gets these prompts"
        routes.append(teacher.route)
    if not averages(recipe) and recipe.teacher.weight != Teacher.weight:
        yield "teacher.weight", "has no effect unless one of `teachers` has no `route`"
    yield from _context(recipe.teacher, "teacher")
    yield from _requests(recipe.teacher, "teacher")


def _averaged(recipe: Recipe, teacher: Teacher, key: str) -> Iterator[Complaint]:
    """Rules for a teacher without a route: its distributions are averaged, and it answers nothing."""
    objective = recipe.objective
    if teacher.model.startswith("api:"):
        yield f"{key}.model", "an API has no distributions to average; give it a `route`"
    if not objective.needs_teacher:
        yield (
            key,
            "without a `route` its distributions are averaged, but `cross_entropy` uses none",
        )
    elif objective.targets in ("topk", "sampled"):
        yield (
            "objective.targets",
            f"`{objective.targets}` of several teachers cannot be averaged; use `hidden` or `online`",
        )
    if request_options(teacher):
        yield key, "has options for its requests, but without a `route` it answers nothing"
    if teacher.context == "shared" and (teacher.system is not None or teacher.examples is not None):
        yield (
            f"{key}.context",
            "the text comes from the main teacher; what only this teacher sees must be `private`",
        )


def _requests(teacher: Teacher, key: str) -> Iterator[Complaint]:
    """Rules for fields of requests that would have no effect, or contradict another key."""
    if teacher.extra_body and not teacher.model.startswith("api:"):
        yield f"{key}.extra_body", "has no effect on local weights; it adds fields to requests to an API"
    for name, value in teacher.extra_body.items():
        if name in OWN_FIELDS:
            yield f"{key}.extra_body.{name}", "is set by the collection itself"
        elif name in SAMPLING_KEYS and value is not None:
            yield f"{key}.extra_body.{name}", f"set `{SAMPLING_KEYS[name]}`, which the corpus records"
        elif name in ("reasoning_effort", "enable_thinking") and getattr(teacher, name) is not None:
            yield f"{key}.extra_body.{name}", f"is set by `{key}.{name}` too"


def _context(teacher: Teacher, key: str) -> Iterator[Complaint]:
    if teacher.context == "private" and teacher.system is None and teacher.examples is None:
        yield (
            f"{key}.context",
            "`private` needs `system` or `examples`, which only the teacher sees",
        )
