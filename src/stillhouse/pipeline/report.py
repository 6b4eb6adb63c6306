"""Builds the report of a run: evaluates all models and adds corpus, training curves, terms and lineage.

The evaluate package computes the figures; here its inputs are gathered, and the rest is read from the
manifest and the metrics.
"""

from __future__ import annotations

import datetime
import itertools
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.console import console
from stillhouse.divergences import OBJECTIVES
from stillhouse.files import read_json_lines
from stillhouse.hashing import sha256_file
from stillhouse.pages.fact_names import TIMES
from stillhouse.pipeline.run_context import RunContext
from stillhouse.pipeline.teacher_targets import assign_teachers
from stillhouse.provenance import versions
from stillhouse.recipe import Lora
from stillhouse.recipe.load import dump_recipe
from stillhouse.recipe.teachers import all_teachers

if TYPE_CHECKING:
    from stillhouse.corpus import Prompt
    from stillhouse.distill import Document
    from stillhouse.evaluate import Candidate, ReferenceModel

BOOKKEEPING = (
    "finished_before",
    "imported",
    "failed",
    "not_sent",
    "set_aside",
    "cost_usd",
    "stopped_by",
    "dropped_prompts",
)
"""Facts of the collect stage that are reported only if they are not zero."""
OPTIONAL = ("select", "on_policy")
"""Stages that are reported only if the recipe has them."""
STAGES_SHOWN = ("collect", "filter", "select", "student", "targets", "train", "control", "on_policy")


def assemble(run: RunContext) -> dict[str, Any]:
    """Evaluates all models and returns the report; see ``evaluate/schema.py`` for the fields."""
    from stillhouse.evaluate import evaluate_models

    candidates = _candidates(run)
    student = next(candidate.weights for candidate in candidates if candidate.key == "student")
    documents = run.documents("held_out", student.tokenizer, student.template, loss_on="assistant")
    prompts = _evaluation_prompts(run)
    reference = _reference(run, candidates, documents)
    results = evaluate_models(candidates, documents, prompts, run.recipe.evaluate, reference=reference)
    sampled = [c for c in candidates if c.key != "teacher" or not run.recipe.teachers]
    _add_samples(run, sampled, prompts, results)
    if run.recipe.teachers or all(candidate.key != "teacher" for candidate in candidates):
        _add_recorded_answers(run, prompts, results["answers"])
    facts = {name: run.manifest.facts(name) for name in STAGES_SHOWN}
    return {
        **results,
        "schema_version": 1,
        "name": run.recipe.name,
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "objective": run.objective.kind,
        "training": _curves(run),
        "corpus": corpus_counts(facts["collect"] | facts["filter"]),
        "student_facts": {k: v for k, v in facts["student"].items() if k not in TIMES}
        | _adapters(run.recipe.student.lora),
        "stages": [
            {"name": name, **{k: v for k, v in stage.items() if isinstance(v, int | float)}}
            for name, stage in facts.items()
            if name not in OPTIONAL or stage.get("seconds")  # a stage that the recipe leaves out takes 0.0 s
        ],
        "terms": {
            "key": ", ".join(dict.fromkeys(terms.key for terms in run.teachers_terms)),
            "name": "; ".join(dict.fromkeys(terms.name for terms in run.teachers_terms)),
            "purpose": run.recipe.purpose,
            "reason": run.verdict.reason,
            "duties": list(run.verdict.duties),
            "accepted": run.recipe.accept_terms,
        },
        "lineage": _lineage(run),
        "recipe": dump_recipe(run.recipe),
        "environment": _environment(),
        "command": f"still run {run.directory / 'recipe.yaml'} --out {run.directory}-again",
    }


def _add_samples(
    run: RunContext, candidates: Sequence[Candidate], prompts: Sequence[Prompt], results: dict[str, Any]
) -> None:
    """Adds pass@1 and the majority vote of each model, if the recipe has ``evaluate.samples``."""
    from stillhouse.evaluate import judge_comparison, sample_and_score
    from stillhouse.verifiers import open_verifiers

    settings = run.recipe.evaluate
    if not settings.samples or not prompts:
        return
    least = {} if run.recipe.select is None else {"least": run.recipe.select.min_reward}
    with open_verifiers(run.recipe.verifiers) as verifiers:
        scores, differences = sample_and_score(
            candidates, prompts, settings, verifiers, seed=run.recipe.seed, **least
        )
        failed = {kind: count for kind, count in verifiers.failures.items() if count}
    if failed:
        console.warn(f"verifiers failed, which counts as a score of 0: {failed}")
    for model in results["models"]:
        model |= scores.get(model["key"], {})
    for key, difference in results["comparison"].items():
        difference["pass_at_1"] = differences.get(key)
    results["verdict"] = asdict(judge_comparison(results["comparison"], results["models"]))


def corpus_counts(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The facts of collecting and filtering for the report; the manifest has all of them."""
    records = ("read_as", "tags", "unused_columns", "duplicates", "rejected_records")
    hidden = (*TIMES, "lowest_concurrency", "failure_details", "request_options", *records)
    return {k: v for k, v in facts.items() if k not in hidden and (v or k not in BOOKKEEPING)}


def _adapters(lora: Lora | None) -> dict[str, Any]:
    if lora is None:
        return {}
    return {"LoRA": f"rank {lora.rank}, alpha {lora.alpha:g}, on {', '.join(lora.targets)}; merged"}


def _evaluation_prompts(run: RunContext) -> list[Prompt]:
    """The held-out prompts as students get them: with the teacher's context, unless it is private."""
    return [
        prompt
        if prompt.is_finished
        else replace(prompt, messages=run.context_of(prompt).for_student(prompt.messages))
        for prompt in run.prompts[1]
    ]


def _add_recorded_answers(run: RunContext, prompts: Sequence[Prompt], answers: list[dict[str, Any]]) -> None:
    """Adds the teacher's collected answers to the examples, if it does not generate its own here."""
    recorded = {row["prompt_id"]: row["messages"][-1] for row in run.corpus("collected").rows("held_out")}
    for prompt, answer in zip(prompts, answers, strict=False):  # examples are the first few prompts
        if prompt.id in recorded:
            reply = {"teacher": recorded[prompt.id]["content"]}
            # On the left for the order (the teacher first), on the right to replace a generated reply.
            answer["replies"] = reply | answer["replies"] | reply


def _candidates(run: RunContext) -> list[Candidate]:
    """Teacher (with weights and the student's tokenizer only), before, offline, student, control."""
    from stillhouse.distill import choose_device, compute_dtype
    from stillhouse.evaluate import Candidate
    from stillhouse.models import load_weights, parse_reference, same_tokenizer

    device = choose_device(run.recipe.train.device)
    dtype = str(compute_dtype(run.recipe.train.dtype, device)).removeprefix("torch.")

    def candidate(key: str, label: str, reference: str, files: Path | None) -> Candidate:
        weights = load_weights(reference, dtype=dtype)
        weights.model.to(device)  # pyright: ignore[reportArgumentType]
        return Candidate(key, label, weights, files)

    def saved(key: str, label: str, directory: Path) -> Candidate:
        return candidate(key, label, str(directory), directory)

    objective = OBJECTIVES[run.objective.kind].title
    trained = objective if run.recipe.on_policy is None else "after its own samples"
    student = saved("student", f"student ({trained})", run.directory / "student")
    before = candidate("before", "student before training", run.start, None)
    candidates = [before, student]
    if run.recipe.on_policy is not None and run.recipe.learns_offline:
        label = f"student after the corpus ({objective})"
        candidates.insert(1, saved("offline", label, run.offline_student))
    numbers = range(len(all_teachers(run.recipe)))
    if run.teachers_have_weights and all(
        same_tokenizer(run.weights_of(number).tokenizer, student.weights.tokenizer) for number in numbers
    ):
        reference = parse_reference(run.recipe.teacher.model)
        teacher = candidate("teacher", reference.text, reference.text, reference.path)
        if run.recipe.teachers:
            teacher = replace(teacher, label=f"{reference.text} and {len(run.recipe.teachers)} more")
        elif run.contexts[0].private:
            label = f"{reference.text} with its context"
            teacher = replace(teacher, label=label, shown=run.contexts[0].for_teacher)
        candidates.insert(0, teacher)
    if run.trains_control:
        candidates.append(
            saved("control", "control (cross-entropy only)", run.directory / "control" / "student")
        )
    return candidates


def _reference(
    run: RunContext, candidates: Sequence[Candidate], documents: list[Document]
) -> ReferenceModel | None:
    """The reference for divergences: the teacher, or each document's own of several."""
    from stillhouse.evaluate import EnsembleReference, TeacherReference
    from stillhouse.models import load_weights

    by_key = {candidate.key: candidate.weights for candidate in candidates}
    if "teacher" not in by_key or not documents:
        return None
    student, main = by_key["student"], by_key["teacher"].model
    assignments = assign_teachers(
        run, "held_out", documents, student.tokenizer, student.template, loss_on="assistant"
    )
    members = []
    for assignment in assignments:
        model = main
        if assignment.teacher:
            reference = all_teachers(run.recipe)[assignment.teacher].model
            dtype = str(main.dtype).removeprefix("torch.")
            model = load_weights(reference, dtype=dtype).model.to(main.device)  # pyright: ignore[reportArgumentType]
        members.append(
            (TeacherReference(model, assignment.teacher_documents), assignment.indices, assignment.weight)
        )
    return EnsembleReference(documents, members) if run.recipe.teachers else members[0][0]


def _curves(run: RunContext) -> dict[str, list[dict[str, Any]]]:
    """The metrics of each training: student, offline student and control."""
    paths = {}
    if run.recipe.learns_offline:
        paths["student" if run.recipe.on_policy is None else "offline"] = run.directory / "metrics.jsonl"
    if run.recipe.on_policy is not None:
        paths["student"] = run.directory / "on_policy" / "metrics.jsonl"
    if run.trains_control:
        paths["control"] = run.directory / "control" / "metrics.jsonl"
    return {key: _points(path) for key, path in paths.items()}


def _points(path: Path) -> list[dict[str, Any]]:
    """The lines of a ``metrics.jsonl``, with cumulative tokens in place of each step's."""
    points = read_json_lines(path)
    for point, tokens in zip(points, itertools.accumulate(p["tokens"] for p in points), strict=True):
        point["tokens"] = tokens
    return points


def _lineage(run: RunContext) -> dict[str, Any]:
    """Names and hashes of teachers, prompts, contexts and template."""
    from stillhouse.models import parse_reference

    lineage: dict[str, Any] = {"teacher": run.recipe.teacher.model, "prompts": run.recipe.prompts.source}
    for number, teacher in enumerate(run.recipe.teachers, start=1):
        lineage[f"teacher {number + 1}"] = teacher.model
        if parse_reference(teacher.model).kind != "api":
            lineage[f"teacher {number + 1} hash"] = run.weights_of(number).fingerprint
    if run.context_file.is_file():
        lineage["context_hash"] = sha256_file(run.context_file)
    if run.teacher_has_weights:
        lineage |= {"teacher_hash": run.teacher.fingerprint, "template_hash": run.teacher.template.hash}
    return lineage


def _environment() -> dict[str, Any]:
    import torch

    return {**versions(), "processors": os.cpu_count(), "threads": torch.get_num_threads()}
