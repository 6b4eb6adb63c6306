"""``still eval``: measures a model on given text, or prints the results of a run."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from stillhouse.cli.options import Output, OutputFlags
from stillhouse.cli.report import show_report
from stillhouse.console import console
from stillhouse.errors import CorpusError, UsageError
from stillhouse.files import read_json

if TYPE_CHECKING:
    from stillhouse.corpus import Prompt

EXAMPLES = """\
Examples:
  still eval runs/quickstart
  still eval runs/first/student --teacher embedded:smollm2 --data text.jsonl
  still eval embedded:smollm2 --data answers.jsonl --limit 100 --json"""


COLUMNS = "The file must have a column `messages`, or the columns `prompt` and `completion`."


def evaluate(
    model: Annotated[str, Parameter(metavar="MODEL|RUN")],
    /,
    *,
    teacher: Annotated[str | None, Parameter(metavar="MODEL")] = None,
    data: Annotated[str | None, Parameter(metavar="FILE")] = None,
    limit: Annotated[int | None, Parameter(metavar="N")] = None,
    max_length: Annotated[int, Parameter(metavar="TOKENS")] = 1024,
    speed: bool = True,
    output: OutputFlags = Output(),  # noqa: B008  frozen
) -> None:
    """Measure a model: divergence from its teacher, perplexity, speed.

    Measures on conversations with answers (--data).
    With a run's directory alone, prints the results of that run.

    Parameters
    ----------
    model
        A model (directory, file.gguf, embedded:smollm2, hub:org/name) or a run's directory.
    teacher
        The model to compare with; without it, only perplexity and speed are measured.
    data
        A .jsonl, .json, .parquet or .csv file of conversations that end with the assistant's answer.
    limit
        Use only this many conversations.
    max_length
        Length at which conversations are truncated.
    speed
        Also measure tokens/s.
    """
    if (limit is not None and limit < 1) or max_length < 2:
        raise UsageError("--limit must be at least 1, --max-length at least 2")
    if data is not None:
        show_report(_measure(model, teacher, data, limit, max_length, speed=speed))
        return
    if teacher is not None:
        raise UsageError("--teacher needs --data: the text to measure on", hint="E.g. --data answers.jsonl.")
    show_report(_report_of_run(Path(model)))


def _report_of_run(directory: Path) -> dict[str, Any]:
    path = directory / "report.json"
    if not path.is_file():
        raise UsageError(
            f"{directory} is not the directory of a finished run",
            hint="To measure a model, pass a text: still eval MODEL --data answers.jsonl.",
        )
    try:
        report = read_json(path)
    except (ValueError, OSError, RecursionError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    if not isinstance(report, dict) or "models" not in report:
        raise UsageError(f"{path} is not a report of `still run`")
    if report.get("comparison") and "margins" not in report.get("verdict", {}):
        from stillhouse.evaluate import judge_comparison

        console.info("this report was written by an earlier version; its verdict is judged again")
        verdict = judge_comparison(report["comparison"], report["models"])
        return report | {"verdict": dataclasses.asdict(verdict)}
    return report


def _measure(
    model: str, teacher: str | None, data: str, limit: int | None, max_length: int, *, speed: bool
) -> dict[str, Any]:
    from stillhouse.distill import make_documents
    from stillhouse.evaluate import Candidate, evaluate_models
    from stillhouse.models import load_weights, parse_reference, same_tokenizer
    from stillhouse.recipe import Evaluate

    if (Path(model) / "student").is_dir() and not (Path(model) / "config.json").is_file():
        student_of_run = Path(model) / "student"
        raise UsageError(
            f"{model} is a run's directory, not a model",
            hint=f"Its student is {student_of_run}: still eval {student_of_run} --data {data}.",
        )
    exchanges = _load_exchanges(data, limit)
    student = load_weights(model)
    candidates = [Candidate("student", model, student, parse_reference(model).path)]
    if teacher is not None:
        weights = load_weights(teacher)
        if not same_tokenizer(weights.tokenizer, student.tokenizer):
            raise UsageError(
                f"{model} and {teacher} have different tokenizers, so their divergence is undefined",
                hint="Omit --teacher to measure perplexity and speed alone.",
            )
        candidates.insert(0, Candidate("teacher", teacher, weights, parse_reference(teacher).path))
    rows = [{"id": p.id, "messages": p.messages, "tools": p.tools} for p in exchanges]
    documents = make_documents(
        rows, student.tokenizer, student.template, loss_on="assistant", max_length=max_length
    )
    return evaluate_models(candidates, documents, [], Evaluate(prompts=0, speed=speed))


def _load_exchanges(data: str, limit: int | None) -> list[Prompt]:
    """The conversations of a file that end with the assistant's answer; at least one."""
    from stillhouse.corpus import read_prompts

    try:
        prompt_set = read_prompts(data, limit=limit)
        prompt_set.report()
        conversations = prompt_set.prompts
    except CorpusError as error:
        if error.hint is None or "prompts.column" not in error.hint:
            raise
        raise CorpusError(str(error), hint=COLUMNS) from error
    exchanges = [p for p in conversations if p.is_finished]
    if exchanges and (unanswered := len(conversations) - len(exchanges)):
        console.info(f"{unanswered} of {len(conversations)} conversations have no answer and are left out")
    if not exchanges:
        raise CorpusError(
            f"{data} contains no finished exchange: no conversation ends with the assistant's turn "
            f"({len(conversations)} have no answer)",
            hint=COLUMNS,
        )
    return exchanges
