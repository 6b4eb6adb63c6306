"""The stages of a run: each reads files of earlier stages, calls one package and returns what it wrote."""

from __future__ import annotations

import dataclasses
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.console import console
from stillhouse.errors import ApiError, EmptyCorpusError, ModelError
from stillhouse.files import atomic_write, read_json, write_json
from stillhouse.pipeline.collect import collect_from_teachers
from stillhouse.pipeline.report import assemble
from stillhouse.pipeline.run_context import RunContext
from stillhouse.pipeline.teacher_targets import (
    cache_teacher_targets,
    target_directory,
    training_assignments,
    training_signal,
)
from stillhouse.provenance import model_card, naming_warning
from stillhouse.recipe import Objective
from stillhouse.recipe.teachers import all_teachers, request_options

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

    from stillhouse.corpus import Prompt
    from stillhouse.distill import Document
    from stillhouse.models import ChatTemplate


@dataclass(frozen=True)
class StageResult:
    """The files that a stage wrote, and facts for the manifest and the report."""

    outputs: list[Path]
    facts: dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """One step of a run.

    ``sections`` are the parts of the recipe that it depends on, ``depends_on`` the stages whose outputs it
    reads; if the hash of any of them changes, the stage runs again. A stage that the recipe does not have
    (``applies`` is false) is recorded without results, and not shown.
    """

    name: str
    sections: tuple[str, ...]
    depends_on: tuple[str, ...]
    function: Callable[[RunContext], StageResult]
    applies: Callable[[RunContext], bool] = lambda run: True


def check_terms(run: RunContext) -> StageResult:
    """Logs the verdict on the teachers' terms; a purpose that they forbid raises TermsError (status 3)."""
    verdict = run.verdict
    models = ", ".join(teacher.model for teacher in all_teachers(run.recipe))
    console.info(f"terms of {models}: {verdict.reason}")
    terms_by_key = {terms.key: terms for terms in run.teachers_terms}
    for terms in terms_by_key.values():
        if warning := naming_warning(terms, run.recipe.name):
            console.warn(warning)
    return StageResult(
        [], {"key": ", ".join(terms_by_key), "reason": verdict.reason, "duties": list(verdict.duties)}
    )


def collect_answers(run: RunContext) -> StageResult:
    """Collects answers from the teachers, or imports those that the prompt file already has."""
    from stillhouse.corpus import describe_failures, load_context

    train, held_out, dropped = run.prompts
    ngram = run.recipe.filter.contamination_ngram
    shared = f", {len(dropped)} dropped for sharing {ngram} words with a held-out one" if ngram else ""
    console.info(f"{len(train)} prompts to train on, {len(held_out)} held out{shared}")
    prompts = [("held_out", prompt) for prompt in held_out]
    if run.recipe.needs_answers:
        prompts += [("train", prompt) for prompt in train]
    prompts.sort(key=lambda item: _length(item[1]))  # a batch of similar lengths has little padding
    summary = collect_from_teachers(run, prompts)
    if summary.stopped_by:
        console.warn(
            f"collecting stopped at {summary.stopped_by}, with {summary.finished_before + summary.collected} "
            f"of {summary.asked} answers; the run continues with those "
            "(a higher limit collects the rest, as long as no student was trained)"
        )
    failed, tolerated = sum(summary.failed.values()), run.recipe.collect.tolerated_failures
    words = describe_failures(summary.failed, summary.failure_details)
    if failed > tolerated * summary.asked:
        raise ApiError(
            f"of {summary.asked} requests {words}\n"
            f"collect.tolerated_failures allows {tolerated:.0%}; the answers so far are kept",
            hint="Run the same command again to ask them again (prompts that are too long, or that a content "
            "policy refuses, are not); with a higher collect.tolerated_failures the run continues without "
            "them.",
        )
    if failed:
        console.warn(f"of {summary.asked} requests {words}")
    outputs = _files(run.corpus("collected").directory)
    contexts = [load_context(teacher) for teacher in all_teachers(run.recipe)]
    if any(contexts):
        write_json(run.context_file, [context.as_json() for context in contexts])
        outputs.append(run.context_file)
    facts = dataclasses.asdict(summary) | {"dropped_prompts": len(dropped)} | run.prompt_set.facts
    options = [request_options(teacher) for teacher in all_teachers(run.recipe)]
    return StageResult(outputs, facts | ({"request_options": options} if any(options) else {}))


def filter_answers(run: RunContext) -> StageResult:
    """Filters the answers; rejects are written with their reason."""
    from stillhouse.corpus import REJECT_SCHEMA, Corpus, filter_corpus
    from stillhouse.corpus.curate.filter_report import drop_warnings, filter_rows

    kept, rejects = run.corpus("kept"), run.directory / "corpus" / "rejects"
    _, held_out, dropped = run.prompts
    summary = filter_corpus(
        run.corpus("collected"),
        kept,
        run.recipe.filter,
        held_out=held_out,
        dropped=dropped,
        rejected_records=run.prompt_set.rejected,
    )
    kept_by_split = {"train": summary.kept, "held_out": summary.held_out}
    rejected: dict[str, Counter[str]] = {split: Counter() for split in kept_by_split}
    for row in Corpus(rejects, schema=REJECT_SCHEMA).rows(columns=["split", "reason"]):
        rejected[row["split"] or "train"][row["reason"]] += 1
    console.table(
        "Filter",
        ["exchanges", "all", "kept", *summary.rejected],
        filter_rows(kept_by_split, rejected, list(summary.rejected)),
    )
    for warning in drop_warnings(run.recipe, kept_by_split, rejected):
        console.warn(warning)
    if not summary.kept and run.recipe.needs_answers:
        raise EmptyCorpusError(
            f"no exchange is left after filtering: {summary.rejected}",
            hint=f"Look at {rejects} and loosen the recipe's filter section.",
        )
    return StageResult([*_files(kept.directory), *_files(rejects)], dataclasses.asdict(summary))


def select_answers(run: RunContext) -> StageResult:
    """Rejection sampling: scores the filtered answers and selects those to train on."""
    from stillhouse.corpus import select_corpus
    from stillhouse.verifiers import open_verifiers

    settings = run.recipe.select
    if settings is None:
        return StageResult([], {"selection": False})
    kept, selected = run.corpus("kept"), run.corpus("selected")
    samples = run.recipe.collect.samples
    if samples > 1 and run.recipe.filter.near_duplicates is not None:
        console.hint(
            "filter.near_duplicates drops repeated answers before they are scored, which shifts pass@1."
        )
    total = run.manifest.facts("filter")["kept"]
    with (
        open_verifiers(run.recipe.verifiers) as verifiers,
        console.progress("select", total, "answers") as progress,
    ):
        summary = select_corpus(
            kept, selected, settings, verifiers, samples=samples, on_scored=progress.advance
        )
    failed = {kind: count for kind, count in summary.failures.items() if count}
    if failed:
        console.warn(f"verifiers failed, which counts as a score of 0: {failed}")
    if not summary.selected:
        raise EmptyCorpusError(
            f"none of {summary.scored} answers has a reward of at least {settings.min_reward:g}",
            hint=f"See {selected.directory.parent / 'scores.parquet'}; lower select.min_reward, or raise "
            "collect.samples.",
        )
    first = summary.pass_at_1 or {"value": 0.0}
    cells = [
        summary.scored,
        summary.selected,
        f"{summary.solved} of {summary.prompts}",
        f"{first['value']:.1%}",
    ]
    console.table("Select", ["scored", "selected", "prompts solved", "pass@1"], [list(map(str, cells))])
    files = [*_files(selected.directory), selected.directory.parent / "scores.parquet"]
    return StageResult([*files, *_files(run.directory / "corpus" / "rejects")], dataclasses.asdict(summary))


def create_student(run: RunContext) -> StageResult:
    """Loads, initializes or prunes the student, and saves it before training."""
    from stillhouse.distill import build_student, require_same_tokenizer, save_student
    from stillhouse.models import compare_templates, load_tokenizer

    if not run.manifest.facts("filter")["held_out"]:
        raise EmptyCorpusError(
            "no held-out exchange is left to evaluate the student on",
            hint="Loosen the recipe's filter section; or hold out more prompts (prompts.held_out) in a new "
            "run (--restart, or another --out).",
        )
    settings = run.recipe.student
    calibration: list[Document] = []
    if settings.init == "prune":
        parent = load_tokenizer(settings.model or run.recipe.teacher.model)
        calibration = run.documents("train", *parent, loss_on="all")
    built = build_student(
        settings,
        teacher=run.teacher if run.teacher_has_weights else None,
        calibration=calibration,
        seed=run.recipe.seed,
        texts=run.texts("train"),
    )
    unrendered = _reject_unrendered(run, built.tokenizer, built.template)
    if run.learns_distributions and not run.objective.joins_tokenizers:
        for number in range(len(all_teachers(run.recipe))):
            require_same_tokenizer(run.weights_of(number).tokenizer, built.tokenizer)
    if run.teacher_has_weights and (warning := compare_templates(run.teacher.template, built.template)):
        console.warn(warning)
    save_student(built.model, built.tokenizer, built.template, run.directory / "start", dtype="float32")
    outputs = [*_files(run.directory / "start"), *_files(run.directory / "corpus" / "rejects")]
    return StageResult(outputs, built.facts | {"unrendered": unrendered})


def _reject_unrendered(run: RunContext, tokenizer: PreTrainedTokenizerFast, template: ChatTemplate) -> int:
    """Adds the exchanges that the student's template refuses to the rejects; raises if they are too many."""
    from stillhouse.corpus import REJECT_SCHEMA, Corpus, reject_unrendered

    rejects = Corpus(run.directory / "corpus" / "rejects", schema=REJECT_SCHEMA)
    places = {prompt.id: prompt.where for prompt in run.prompt_set.prompts}
    rejected, total = reject_unrendered(run.learned.rows(), tokenizer, template, rejects, places)
    if rejected > run.recipe.prompts.tolerated_rejects * total:
        raise ModelError(
            f"the student's chat template cannot render {rejected} of {total} exchanges; "
            f"{rejects.directory} has the reason of each",
            hint="Set student.template: teacher, or a higher prompts.tolerated_rejects.",
        )
    if rejected:
        console.warn(f"the student's chat template cannot render {rejected} of {total} exchanges: rejected")
    return rejected


def write_targets(run: RunContext) -> StageResult:
    """Caches the teacher's distribution at every token, so that it runs once and not in every epoch."""
    if not _caches_targets(run):
        return StageResult([], {"cached": False})
    assignments = training_assignments(run)
    for assignment in assignments:
        _drop_stale_targets(target_directory(run, assignment.teacher), assignment.teacher_documents)
    cache_teacher_targets(run, assignments)
    facts = {key: value for assignment in assignments for key, value in assignment.facts.items()}
    return StageResult(
        _files(run.directory / "targets"), {"cached": True, "kind": run.objective.targets, **facts}
    )


def _caches_targets(run: RunContext) -> bool:
    on_policy = run.recipe.on_policy
    reads_corpus = run.recipe.learns_offline or (on_policy is not None and on_policy.off_policy > 0)
    return run.learns_distributions and run.objective.targets != "online" and reads_corpus


def _drop_stale_targets(directory: Path, documents: list[Document]) -> None:
    """Removes targets of other documents: the filter may change as long as nothing was trained."""
    from stillhouse.distill.data.documents import documents_hash

    index = directory / "index.json"
    if not index.is_file():
        return
    try:
        cached = read_json(index)["inputs"]["documents"]
    except (ValueError, KeyError, TypeError):
        return  # damaged: cache_targets() raises the error
    if cached != documents_hash(documents):
        console.info("targets: the exchanges have changed; caching again")
        shutil.rmtree(directory)


def train_student(run: RunContext) -> StageResult:
    """Trains the student on the teacher's distributions, or on its text."""
    if not run.recipe.learns_offline:
        return StageResult([], {"trained": False})
    return _train(run, run.objective, "student")


def train_control(run: RunContext) -> StageResult:
    """Trains the same initial student on the same tokens with cross-entropy alone, as a control."""
    if not run.trains_control:
        return StageResult([], {"trained": False})
    control = dataclasses.replace(run.objective, kind="cross_entropy", cross_entropy=0.0)
    return _train(run, control, "control")


def _train(run: RunContext, objective: Objective, label: str) -> StageResult:
    from stillhouse.distill import prepare_lora, save_student, train
    from stillhouse.models import load_weights

    documents = run.training_documents
    if not documents:
        raise EmptyCorpusError(
            "no document has a token to train on",
            hint="Check objective.loss_on, train.max_length and the chat template; changing one of them "
            "needs a new run (--restart, or another --out).",
        )
    weights = load_weights(run.start)
    model = prepare_lora(weights.model, run.recipe.student.lora, seed=run.recipe.seed)
    # The student's checkpoints and metrics are in the run's directory itself, the control's below it.
    directory = run.directory if label == "student" else run.directory / label
    result = train(
        model,
        documents,
        training_signal(run) if objective.needs_teacher else None,
        objective=objective,
        settings=run.recipe.train,
        directory=directory,
        seed=run.recipe.seed,
        label=label,
    )
    saved = run.offline_student if label == "student" else directory / "student"
    save_student(model, weights.tokenizer, weights.template, saved)
    facts = {"tokens": result.tokens, "steps": result.steps, "train_seconds": round(result.seconds, 1)}
    return StageResult([*_files(saved), directory / "metrics.jsonl"], facts)


def train_on_samples(run: RunContext) -> StageResult:
    """Trains the student on its own samples, with the teacher's distributions, rewards or both."""
    if run.recipe.on_policy is None:
        return StageResult([], {"trained": False})
    from stillhouse.pipeline.on_policy import run_on_policy

    facts = run_on_policy(run)
    metrics = run.directory / "on_policy" / "metrics.jsonl"
    return StageResult([*_files(run.directory / "student"), metrics], facts)


def evaluate_models(run: RunContext) -> StageResult:
    """Evaluates teacher, student before and after training, and control; writes the report."""
    from stillhouse.evaluate import write_report

    write_report(run.directory, assemble(run))
    return StageResult([run.directory / "report.json", run.directory / "report.html"], {})


def write_card(run: RunContext) -> StageResult:
    """Writes the model card into the student's directory."""
    report = read_json(run.directory / "report.json")
    card = model_card(
        recipe=run.recipe,
        report=report,
        terms=run.teachers_terms,
        verdict=run.verdict,
        manifest_facts={stage.name: run.manifest.facts(stage.name) for stage in STAGES},
    )
    path = run.directory / "student" / "README.md"
    atomic_write(path, card)
    return StageResult([path], {})


def _length(prompt: Prompt) -> int:
    return sum(len(message["content"]) for message in prompt.messages)


def _files(directory: Path) -> list[Path]:
    return sorted(path for path in directory.rglob("*") if path.is_file())


CORPUS = ("filter", "select")
"""Stages that decide which exchanges the student is trained on."""

TEACHERS = ("teacher", "teachers")
"""Sections of the recipe with the teachers."""

STAGES = (
    Stage("terms", (*TEACHERS, "purpose", "accept_terms"), (), check_terms),
    Stage(
        "collect",
        (*TEACHERS, "prompts", "collect", "filter.contamination_ngram", "seed"),
        ("terms",),
        collect_answers,
    ),
    Stage("filter", ("filter", "prompts", "seed"), ("collect",), filter_answers),
    Stage(
        "select",
        ("verifiers", "select", "collect.samples"),
        ("filter",),
        select_answers,
        lambda run: run.recipe.select is not None,
    ),
    Stage("student", (*TEACHERS, "student", "train.max_length", "seed"), CORPUS, create_student),
    Stage(
        "targets",
        (*TEACHERS, "objective", "train.dtype", "seed"),
        (*CORPUS, "student"),
        write_targets,
        _caches_targets,
    ),
    Stage(
        "train",
        ("objective", "train", "seed"),
        (*CORPUS, "student", "targets"),
        train_student,
        lambda run: run.recipe.learns_offline,
    ),
    Stage(
        "control",
        ("objective", "train", "evaluate.control", "seed"),
        (*CORPUS, "student"),
        train_control,
        lambda run: run.trains_control,
    ),
    Stage(
        "on_policy",
        ("on_policy", "objective", "train", *TEACHERS, "prompts", "verifiers", "student.lora", "seed"),
        (*CORPUS, "student", "targets", "train"),
        train_on_samples,
        lambda run: run.recipe.on_policy is not None,
    ),
    Stage("evaluate", ("evaluate", "verifiers", "name"), ("train", "control", "on_policy"), evaluate_models),
    Stage("card", ("name", "purpose", "license"), ("evaluate", "terms"), write_card),
)
