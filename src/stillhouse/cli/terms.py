"""``still terms``: whether a model's outputs may train another, and on what conditions."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from stillhouse.cli.options import Output, OutputFlags
from stillhouse.console import console
from stillhouse.recipe import Purpose

USAGE = "Usage: still terms [OPTIONS] [MODEL]"
EXAMPLES = """\
Examples:
  still terms
  still terms embedded:smollm2
  still terms hub:google/gemma-3-270m --purpose commercial"""


def terms(
    model: Annotated[str | None, Parameter(metavar="MODEL")] = None,
    /,
    *,
    purpose: Purpose = "research",
    output: OutputFlags = Output(),  # noqa: B008  frozen
) -> None:
    """Explain the terms of a model, or list all that are known.

    This is no legal advice.

    Parameters
    ----------
    model
        A model's reference, its name, or a key of the table; without it the whole table is listed.
    purpose
        What the student would be for.
    """
    if model is None:
        _list_all()
    else:
        _explain(model, purpose)


def _list_all() -> None:
    from stillhouse.provenance import all_terms, explain_terms

    entries = all_terms()
    rows = [[t.key, t.name, t.outputs_may_train, t.may_compete] for t in entries]
    console.table("Terms", ["key", "name", "may train", "may compete"], rows)
    console.data([explain_terms(t) for t in entries])


def _explain(model: str, purpose: Purpose) -> None:
    from stillhouse.provenance import explain_terms, find_terms, judge_terms

    found = find_terms(model, metadata=_metadata(model))
    verdict = judge_terms(found, purpose)
    answer = {True: "allowed", False: "refused", None: "unknown: needs --accept-terms"}[verdict.allowed]
    passes_on = {True: "yes", False: "no", None: "unknown"}[found.passes_on]
    nobody_knows = found.outputs_may_train == "unknown" or found.passes_on is None
    rows = [
        [f"for {purpose}", f"{answer}: {verdict.reason}"],
        ["outputs may train", found.outputs_may_train],
        ["may compete", found.may_compete],
        ["passes on", passes_on],
        ["student's licence", found.student_license or ("unknown" if nobody_knows else "free to choose")],
        *[["duty", duty] for duty in verdict.duties],
        ["clause", found.clause],
        ["source", found.source],
        ["checked", found.checked],
        *([["note", found.note]] if found.note and nobody_knows else []),
    ]
    console.table(f"{found.name} ({found.key})", ["what", "terms"], rows)
    console.data({"model": model, "purpose": purpose, **explain_terms(found)})
    if near := _meant(model, known=found.key != "unknown"):
        console.hint(near)


def _meant(model: str, *, known: bool) -> str | None:
    """What a word that names no model may have meant: a key of the table, or an embedded model.

    Args:
        known: whether it tells the terms all the same, being a key or the name of a model that is not here.
    """
    from stillhouse.errors import ModelNotFoundError
    from stillhouse.models import EMBEDDED, parse_reference
    from stillhouse.provenance import all_terms
    from stillhouse.recipe.suggest import nearest

    try:
        parse_reference(model)
    except ModelNotFoundError as error:
        words = {entry.key: entry.key for entry in all_terms()}
        if model in words:
            return None
        words |= {name: f"embedded:{name}" for name in EMBEDDED}
        if not known and (near := nearest(model, words)):
            return f"Did you mean `{words[near]}`?"
        return error.hint if error.hint and error.hint.startswith("Did you mean") else None
    return None


def _metadata(model: str) -> dict[str, str] | None:
    """What the model's own files say of its licence, when it is here; a bare key or name has no files."""
    from stillhouse.errors import ModelNotFoundError
    from stillhouse.models import describe, parse_reference

    try:
        reference = parse_reference(model)
        return None if reference.kind == "api" else describe(model).metadata
    except ModelNotFoundError:
        return None
