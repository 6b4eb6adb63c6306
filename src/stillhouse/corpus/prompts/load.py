"""Loads prompts from files, packages and generators.

Exact duplicates are dropped. A conversation that ends with an assistant message is a finished exchange, which
is imported instead of asked. A record that cannot be read is rejected with its place and the reason; only too
many of them are an error.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stillhouse.console import console
from stillhouse.corpus.prompts.columns import AUTO, NONE, BadAnswerError, Conversation, conversation
from stillhouse.corpus.prompts.files import Record, read_records
from stillhouse.corpus.prompts.packaged import PACKAGES, packaged_records
from stillhouse.corpus.prompts.prompt import BAD_ANSWER, UNREADABLE, Prompt, RejectedRecord
from stillhouse.corpus.prompts.reasoning_gym import PREFIX, generated_records
from stillhouse.corpus.prompts.sources import source_files
from stillhouse.corpus.prompts.split import draw_ids
from stillhouse.errors import CorpusError, EmptyCorpusError
from stillhouse.hashing import sha256_json, sha256_text

if TYPE_CHECKING:
    from stillhouse.recipe import Recipe

TOLERATED_REJECTS = 0.05
"""Share of records that may be unreadable, unless the caller says otherwise."""
GOLD = "answer"
"""The column of a gold answer: never the teacher's answer unless a recipe says so."""


@dataclass
class PromptSet:
    """The prompts of a source, and what became of everything else in it."""

    source: str
    prompts: list[Prompt] = field(default_factory=list)
    rejected: list[RejectedRecord] = field(default_factory=list)
    forms: dict[str, int] = field(default_factory=dict)
    """Records by what they were read as, e.g. ``finished conversations (Alpaca: instruction, output)``."""
    tags: dict[str, int] = field(default_factory=dict)
    """Records by column that became a tag."""
    unused: dict[str, int] = field(default_factory=dict)
    """Records by column, or field of a message, that is not used."""
    files: int = 1
    duplicates: int = 0

    @property
    def facts(self) -> dict[str, Any]:
        """Everything but the prompts, as JSON values."""
        return {
            "read_as": self.forms,
            "tags": self.tags,
            "unused_columns": self.unused,
            "duplicates": self.duplicates,
            "rejected_records": dict(Counter(record.reason for record in self.rejected)),
        }

    def report(self) -> None:
        """Tells the user what the records were read as, which columns are unused, and what was rejected."""
        read = ", ".join(
            f"{count:,} {form if count != 1 else form.replace('s (', ' (', 1)}"
            for form, count in self.forms.items()
        )
        of = f" of {self.files} files" if self.files > 1 else ""
        twice = f"; {self.duplicates:,} exact duplicate{'s' * (self.duplicates != 1)} dropped"
        console.info(f"{self.source}{of}: read as {read}{twice if self.duplicates else ''}")
        is_file = not self.source.startswith((PREFIX, "package:"))
        if is_file and GOLD in self.tags and any(form.startswith("prompts") for form in self.forms):
            console.hint(
                f"The column `{GOLD}` is kept for verifiers; to learn it instead of asking a teacher, set "
                f"prompts.answer to {GOLD}."
            )
        if is_file and self.tags:
            console.info(f"kept as tags, which are not learned: {_counted(self.tags)}")
        if self.unused:
            console.warn(f"{self.source}: not used: {_counted(self.unused)}")
        self.report_rejects()

    def report_rejects(self) -> None:
        """Tells the user how many records were rejected for each reason, with the first."""
        for reason in dict.fromkeys(record.reason for record in self.rejected):
            records = [record for record in self.rejected if record.reason == reason]
            tell = console.warn if reason == UNREADABLE else console.info
            tell(f"{len(records):,} rejected: {reason}, first {records[0].detail}")


def load_prompts(
    source: str, *, column: str | None = None, limit: int | None = None, seed: int = 0
) -> list[Prompt]:
    """Reads prompts from ``package:mmlu``, ``reasoning_gym:NAME?size=200`` or files.

    Files are .jsonl, .json, .parquet, .arrow, .csv, .tsv or .txt, text files also compressed; a directory or
    a pattern (``data/*.jsonl``) names several.

    Args:
        column: column that holds the prompt (default: see :mod:`~stillhouse.corpus.prompts.columns`).
        limit: number of prompts to keep, drawn by ``seed`` from their ids; the order stays.

    Raises:
        CorpusError: a file is missing or malformed, or a record is no prompt; the message names the line.
        EmptyCorpusError: it contains no prompt.
        MissingExtraError: the package is not installed.
    """
    prompt_set = read_prompts(source, column=column, limit=limit, seed=seed, tolerated=0.0)
    prompt_set.report_rejects()
    return prompt_set.prompts


def read_recipe_prompts(recipe: Recipe) -> PromptSet:
    """The prompts of a recipe; columns that its verifiers read are never taken for an answer.

    Raises:
        CorpusError, EmptyCorpusError, MissingExtraError: as :func:`read_prompts`.
    """
    settings = recipe.prompts
    return read_prompts(
        settings.source,
        column=settings.column,
        answer=settings.answer,
        gold=[GOLD, *(verifier.answer for verifier in recipe.verifiers)],
        limit=settings.limit,
        seed=recipe.seed,
        tolerated=settings.tolerated_rejects,
    )


def read_prompts(
    source: str,
    *,
    column: str | None = None,
    answer: str = AUTO,
    gold: Collection[str] = (GOLD,),
    limit: int | None = None,
    seed: int = 0,
    tolerated: float = TOLERATED_REJECTS,
) -> PromptSet:
    """As :func:`load_prompts`, with what became of all records; bad ones are rejected.

    Args:
        answer: column of the answer to learn; ``none`` to ask every question, ``auto`` to decide by the form.
        gold: columns that hold gold answers for verifiers.
        tolerated: share of records that may be unreadable.

    Raises:
        CorpusError: also if more records are unreadable than ``tolerated``; the message is that of the first.
    """
    prompt_set = PromptSet(source)
    unique: dict[str, Prompt] = {}
    columns: dict[tuple[str, str], dict[str, None]] = {}
    forms: Counter[tuple[str, str]] = Counter()
    tags: Counter[str] = Counter()
    unused: Counter[str] = Counter()
    errors: list[CorpusError] = []
    total = 0
    for where, record in _records(source, prompt_set):
        total += 1
        try:
            if isinstance(record, CorpusError):
                raise record
            read = conversation(record, column, answer=answer, gold=gold)
        except BadAnswerError as error:
            prompt_set.rejected.append(_rejected(source, where, BAD_ANSWER, error))
        except CorpusError as error:
            errors.append(error if isinstance(record, CorpusError) else _located(where, record, error))
            prompt_set.rejected.append(_rejected(source, where, UNREADABLE, errors[-1]))
        else:
            prompt = _prompt(read, source, where)
            prompt_set.duplicates += prompt.id in unique
            unique.setdefault(prompt.id, prompt)
            kind = "finished conversations" if prompt.is_finished else "prompts", read.form
            forms[kind] += 1
            columns.setdefault(kind, {}).update(dict.fromkeys(read.columns))
            tags.update(key for key, value in read.tags.items() if str(value).strip())
            unused.update(read.unused)
    if len(errors) > tolerated * total:
        raise _too_many(errors, total, tolerated)
    if answer not in (AUTO, NONE) and unique and not any(answer in names for names in columns.values()):
        raise CorpusError(f"{source}: prompts.answer: no record has a column {answer!r} with an answer")
    if not unique:
        why = f"; first of {total:,} rejected: {prompt_set.rejected[0].detail}" if total else ""
        raise EmptyCorpusError(f"{source} contains no prompt{why}", hint=errors[0].hint if errors else None)
    selected = unique.keys() if limit is None else draw_ids(unique, limit, seed)
    prompt_set.prompts = [prompt for id, prompt in unique.items() if id in selected]
    prompt_set.forms = {
        f"{kind} ({form}: {', '.join(columns[kind, form])})": count
        for (kind, form), count in forms.most_common()
    }
    prompt_set.tags, prompt_set.unused = _by_count(tags), _by_count(unused)
    return prompt_set


def _prompt(read: Conversation, source: str, where: str) -> Prompt:
    hashed = [read.messages, read.tools] if read.tools else read.messages
    return Prompt(sha256_json(hashed)[:32], read.messages, source, read.tags, read.tools, where)


def _located(where: str, record: dict[str, Any], error: CorpusError) -> CorpusError:
    """The error with the place of the record, and its own id where it has one."""
    id = record.get("id")
    own = f" (id {id!r:.60})" if isinstance(id, str | int) and id != "" else ""
    return CorpusError(f"{where}{own}: {error}", hint=error.hint)


def _rejected(source: str, where: str, reason: str, error: CorpusError) -> RejectedRecord:
    detail = str(error) if str(error).startswith(where.partition(": ")[0]) else f"{where}: {error}"
    return RejectedRecord(sha256_text(f"{where} {reason}")[:32], where, reason, detail, source)


def _too_many(errors: list[CorpusError], total: int, tolerated: float) -> CorpusError:
    first = errors[0]
    if tolerated == 0 or total == 1:
        return first
    return CorpusError(
        f"{first} ({len(errors):,} of {total:,} records are unreadable)",
        hint=first.hint or f"Up to {tolerated:.0%} may be: prompts.tolerated_rejects.",
    )


def _records(source: str, prompt_set: PromptSet) -> Iterator[Record]:
    if source.startswith(PREFIX):
        yield from generated_records(source)
    elif source.startswith("package:"):
        name = source.removeprefix("package:")
        if name not in PACKAGES:
            raise CorpusError(
                f"there is no package of prompts named {name!r}",
                hint=f"Use {', '.join(f'package:{known}' for known in PACKAGES)}, or a file.",
            )
        yield from packaged_records(name)
    else:
        files = source_files(source)
        prompt_set.files = len(files)
        for path in files:
            yield from read_records(path)


def _by_count(counts: Counter[str]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} ({count:,})" for name, count in counts.items())
