"""The data of a study's seed: what `make` wrote, or a file of questions split into training and test."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stillhouse.console import console
from stillhouse.errors import RecipeError, StillhouseError
from stillhouse.files import atomic_write, read_json
from stillhouse.hashing import sha256_file, sha256_json
from stillhouse.recipe.study import TEST_FILE, TRAIN_FILE, Questions, Study

if TYPE_CHECKING:
    from stillhouse.corpus import Prompt

READ_ANSWERS = ("exact", "numeric", "math", "code")
"""Verifiers that compare with a column of reference answers."""


def make_data(study: Study, file: Path, seed: int, data: Path) -> Path:
    """Makes the data of a seed once; raises RecipeError if its code, file or settings have changed since.

    Args:
        file: the study's own file, for messages.
        data: directory for the data.
    """
    origin, expected = _origin(study, file, seed)
    record = data / "made.json"
    if record.is_file():
        if read_json(record) == expected:
            return data
        raise RecipeError(
            f"{data} was made from another {origin} or other settings than now",
            hint="Give --out another directory, or remove that one.",
        )
    shutil.rmtree(data, ignore_errors=True)  # of a process killed before it wrote the record
    if study.make is not None:
        with console.progress(f"making the data of seed {seed}", None):
            _call_make(Path(study.make), data, seed, study.settings)
    elif study.questions is not None:
        _split(study.questions, data, seed)
    atomic_write(record, json.dumps(expected))
    return data


def _origin(study: Study, file: Path, seed: int) -> tuple[str, str]:
    """What the data comes from, in words and as a hash."""
    if study.make is not None:
        source = Path(study.make)
        if not source.is_file():
            raise RecipeError(f"{file}: make: there is no {source}")
        return str(source), sha256_json([source.read_text("utf-8"), study.settings, seed])
    if study.questions is not None:
        source, settings = study.questions.source, study.questions
        content = sha256_file(Path(source)) if Path(source).is_file() else source
        return source, sha256_json(["questions", content, settings.column, settings.test, seed])
    return "file", sha256_json(["no data of its own", seed])


def _split(questions: Questions, data: Path, seed: int) -> None:
    """Draws a seed's test questions; those that share 13 words in a row with one of them are left out."""
    from stillhouse.corpus import load_prompts, split_held_out

    prompts = load_prompts(questions.source, column=questions.column)
    if questions.test >= len(prompts):
        raise RecipeError(
            f"questions.test: {questions.test} of {len(prompts)} questions in {questions.source} leave none "
            "to train on"
        )
    train, test, dropped = split_held_out(prompts, questions.test, seed=seed)
    if dropped:
        console.info(f"seed {seed}: {len(dropped)} questions share 13 words in a row with one of the test")
    for name, part in ((TRAIN_FILE, train), (TEST_FILE, test)):
        atomic_write(data / name, _lines(part))


def check_tests(study: Study, file: Path, data: Path) -> None:
    """Raises RecipeError if a test has no column with the reference answers that a verifier reads.

    Args:
        file: the study's own file, for messages.
        data: the directory of a seed's data.
    """
    from stillhouse.corpus import load_prompts

    columns = {v.answer: v.kind for v in study.verifiers if v.kind in READ_ANSWERS}
    for test, source in study.tests.items():
        prompts = load_prompts(source.replace("{data}", str(data)))
        for column, kind in columns.items():
            if not any(column in prompt.tags for prompt in prompts):
                others = ", ".join(sorted({name for prompt in prompts for name in prompt.tags})) or "none"
                raise RecipeError(
                    f"{file}: verifiers: {kind} reads reference answers from the column {column!r}, which no "
                    f"question of the test {test} has; other columns: {others}",
                    hint="Add the column to the file of questions, or name another: verifiers: "
                    f"[{{kind: {kind}, answer: COLUMN}}].",
                )


def _lines(prompts: Sequence[Prompt]) -> str:
    rows = [{**prompt.tags, "messages": prompt.messages} for prompt in prompts]
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def _call_make(source: Path, data: Path, seed: int, settings: Mapping[str, Any]) -> None:
    try:
        _import_file(source).make(data, seed, dict(settings))
    except StillhouseError:
        raise
    except Exception as error:  # the user's code may raise anything
        hint = "See its traceback with --debug."
        if isinstance(error, ModuleNotFoundError):
            hint = f"Install {error.name}; reasoning-gym comes with `pip install 'stillhouse[reasoning]'`."
        raise RecipeError(f"{source}: {type(error).__name__}: {error}", hint=hint) from error


def _import_file(source: Path) -> Any:
    spec = importlib.util.spec_from_file_location(f"study_{source.stem}", source)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look up annotations there
    spec.loader.exec_module(module)
    if not callable(getattr(module, "make", None)):
        raise RecipeError(f"{source} has no function `make(directory, seed, settings)`")
    return module
