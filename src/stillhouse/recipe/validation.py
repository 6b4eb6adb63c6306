"""Rules between the fields of a recipe: finds combinations that cannot work or would silently do nothing.

Each rule yields ``(key, what is wrong and what to do)``. Ranges of single values are in
:mod:`stillhouse.recipe.sections`. No file or model is opened here, so facts about a model (its number of
layers, matching vocabularies) are checked later.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from stillhouse.divergences import OBJECTIVES
from stillhouse.recipe.sections import Objective, Recipe, Student
from stillhouse.recipe.teachers import all_teachers, teacher_rules

Complaint = tuple[str, str]

PRUNE_KEYS = ("layers", "keep", "intermediate", "heads", "hidden")


def broken_rules(recipe: Recipe) -> list[Complaint]:
    """All complaints about ``recipe``: dotted keys and messages."""
    return [
        *directory_name("name", recipe.name),
        *_student(recipe.student),
        *objective_rules(recipe.objective),
        *_teacher_without_weights(recipe),
        *teacher_rules(recipe),
        *_collect(recipe),
        *_train(recipe),
        *_on_policy(recipe),
        *_rewards(recipe),
    ]


def directory_name(key: str, name: str) -> Iterator[Complaint]:
    """A complaint if ``name`` cannot be the name of a directory."""
    if not re.fullmatch(r"\w[\w.-]*", name):
        yield key, f"names a directory: letters, digits, `.`, `_` and `-` only, not `{name}`"


def _student(student: Student) -> Iterator[Complaint]:
    only_scratch = f"has no effect with `init: {student.init}`, only with `init: scratch`"
    prunes = [key for key in PRUNE_KEYS if getattr(student, key) is not None]
    if student.init == "pretrained" and student.model is None:
        yield "student.model", "missing: `init: pretrained` needs the reference of the starting weights"
    if student.init == "scratch":
        if not isinstance(student.config.get("model_type"), str):
            yield "student.config", "`init: scratch` needs `model_type`, e.g. `model_type: qwen3`"
        if student.model is not None:
            yield "student.model", "has no effect with `init: scratch`; the architecture comes from `config`"
        if student.vocabulary is not None and student.tokenizer is not None:
            yield "student.vocabulary", "trains a tokenizer, so `tokenizer` must not be set too"
    else:
        if student.config:
            yield "student.config", only_scratch
        if student.tokenizer is not None:
            yield "student.tokenizer", only_scratch
        if student.vocabulary is not None:
            yield "student.vocabulary", only_scratch
    if student.init == "prune":
        if not prunes:
            yield "student", f"`init: prune` needs at least one of {', '.join(PRUNE_KEYS)}"
        if student.layers is not None and student.keep is not None:
            yield "student.keep", "names the layers to keep, so `layers` must not be set too"
        if student.keep is not None and sorted(set(student.keep)) != list(student.keep):
            yield "student.keep", "must list each layer once, in ascending order"
    else:
        for key in prunes:
            yield f"student.{key}", f"has no effect with `init: {student.init}`, only with `init: prune`"


def objective_rules(objective: Objective) -> Iterator[Complaint]:
    """What cannot work about ``objective`` by itself; the losses refuse the same (``require_supported``)."""
    if not objective.needs_teacher:
        return
    kind = OBJECTIVES[objective.kind]
    if objective.joins_tokenizers:
        setting = "`align: spans`" if kind.compares_tokens else f"`kind: {objective.kind}`"
        if objective.targets not in ("hidden", "online"):
            yield (
                "objective.targets",
                f"{setting} needs the teacher's whole distribution: use `hidden` or `online`, not "
                f"`{objective.targets}`",
            )
        if objective.loss_on == "all":
            yield "objective.loss_on", f"{setting} aligns the assistant's messages: use `assistant`"
    elif objective.targets == "sampled" and not objective.resolved_kind.estimable_from_samples:
        estimable = " or ".join(f"`kind: {n}`" for n, k in OBJECTIVES.items() if k.estimable_from_samples)
        yield (
            "objective.targets",
            f"`sampled` cannot be used with `kind: {objective.kind}`: drawn ids estimate averages under the "
            f"teacher only. Use {estimable}, or `targets: hidden` (exact) or `topk`",
        )
    for (parameter, value), reason in kind.invalid.items():
        if getattr(objective, parameter) == value:
            yield f"objective.{parameter}", f"{value:g} {reason}"


def _teacher_without_weights(recipe: Recipe) -> Iterator[Complaint]:
    student, objective = recipe.student, recipe.objective
    without = [teacher for teacher in all_teachers(recipe) if teacher.model.startswith("api:")]
    if without and objective.needs_teacher:
        kind = objective.kind
        yield (
            "objective.kind",
            f"`{kind}` needs the teacher's weights, and an API returns only text; use `cross_entropy`",
        )
    if recipe.teacher not in without:
        return
    if student.init == "prune" and student.model is None:
        yield "student.model", "missing: the teacher is an API, so name the model to prune"
    if student.vocabulary is not None:
        yield (
            "student.vocabulary",
            "takes special tokens from the teacher's tokenizer, which an API does not provide",
        )
    elif student.init == "scratch" and student.tokenizer is None:
        yield (
            "student.tokenizer",
            "missing: the teacher is an API, so name a model whose tokenizer the student uses",
        )
    if student.template == "teacher":
        yield "student.template", "the teacher is an API, which provides no chat template; use `own`"


def _collect(recipe: Recipe) -> Iterator[Complaint]:
    limits = recipe.filter
    asked = [t for t in all_teachers(recipe) if t is recipe.teacher or t.route]
    unpriced = any(teacher.price_in is None or teacher.price_out is None for teacher in asked)
    if recipe.collect.max_cost is not None and unpriced:
        yield "collect.max_cost", "needs teacher.price_in and teacher.price_out to compute the cost"
    if limits.max_chars is not None and limits.max_chars < limits.min_chars:
        yield "filter.max_chars", f"{limits.max_chars} is below min_chars ({limits.min_chars})"


def _train(recipe: Recipe) -> Iterator[Complaint]:
    train = recipe.train
    if train.schedule == "wsd" and train.warmup + train.decay > 1:
        yield "train.decay", f"warmup ({train.warmup:g}) and decay ({train.decay:g}) add up to more than 1"
    if train.epochs == 0 and train.tokens is None and recipe.on_policy is None:
        yield "train.epochs", "0 skips training, and without `on_policy` the student would not be trained"


def _on_policy(recipe: Recipe) -> Iterator[Complaint]:
    settings, objective = recipe.on_policy, recipe.objective
    if settings is None:
        return
    if settings.teacher == 0 and settings.reward == 0:
        yield "on_policy", "`teacher` and `reward` are both 0, so there is nothing to learn from"
    if settings.teacher > 0 and any(teacher.model.startswith("api:") for teacher in all_teachers(recipe)):
        yield "on_policy.teacher", "needs the teacher's weights, and an API returns only text; set it to 0"
    elif settings.teacher > 0 and objective.cross_entropy_weight > 0:
        yield (
            "objective.kind",
            "cross-entropy on the student's own samples only reinforces them; use a divergence alone, "
            "e.g. `reverse_kl`",
        )
    if objective.joins_tokenizers and (settings.teacher > 0 or settings.off_policy > 0):
        yield (
            "on_policy",
            "`uld` and `align: spans` support the corpus only; set on_policy.teacher and off_policy to 0",
        )
    if settings.reward > 0 and not recipe.verifiers:
        yield "on_policy.reward", "needs at least one entry in `verifiers`"
    if settings.reward > 0 and settings.samples < 2:
        yield "on_policy.samples", "must be at least 2: a reward is compared with the others of its group"
    if settings.order != "shuffled" and settings.reward == 0:
        yield "on_policy.order", f"`{settings.order}` orders by rewards; set `on_policy.reward` above 0"
    if settings.reward == 0 and settings.policy != type(settings.policy)():
        yield "on_policy.policy", "has no effect without a reward; set `on_policy.reward` above 0"
    if settings.policy.overlong >= settings.max_tokens:
        yield "on_policy.policy.overlong", "must be below on_policy.max_tokens"


def _rewards(recipe: Recipe) -> Iterator[Complaint]:
    needs = "needs at least one entry in `verifiers`"
    for number, verifier in enumerate(recipe.verifiers):
        key = f"verifiers.{number}.function"
        if (verifier.kind == "function") != (verifier.function is not None):
            yield key, "is required with `kind: function` and only allowed there: `module:function`"
        elif verifier.function is not None and not re.fullmatch(r"[\w.]+:\w+", verifier.function):
            yield key, f"must be `module:function`, not `{verifier.function}`"
    if recipe.select is not None and not recipe.verifiers:
        yield "select", needs
    if recipe.evaluate.samples and not recipe.verifiers:
        yield "evaluate.samples", needs
