"""``still terms``: whether a model's outputs may train another model, and on what conditions."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from stillhouse.cli.options import Output, OutputFlags
from stillhouse.console import console
from stillhouse.errors import TermsError
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
    purpose: Purpose | None = None,
    output: OutputFlags = Output(),  # noqa: B008  frozen
) -> None:
    """Explain the terms of a model, or list all known terms.

    With --purpose, exits with status 3 if a run with that purpose would be refused. This is not legal advice.

    Parameters
    ----------
    model
        A model's reference or name, or a key of the table; without it, the whole table is listed.
    purpose
        The intended use of the student; research, if it is not given.
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


def _explain(model: str, asked_purpose: Purpose | None) -> None:
    from stillhouse.provenance import explain_terms, find_terms, judge_terms, require_allowed

    purpose = asked_purpose or "research"
    entry = find_terms(model, metadata=_metadata(model))
    verdict = judge_terms(entry, purpose)
    answer = {True: "allowed", False: "refused", None: "unknown (needs --accept-terms)"}[verdict.allowed]
    passes_on = {True: "yes", False: "no", None: "unknown"}[entry.passes_on]
    is_unknown = entry.outputs_may_train == "unknown" or entry.passes_on is None
    rows = [
        [f"for {purpose}", f"{answer}: {verdict.reason}"],
        ["outputs may train", entry.outputs_may_train],
        ["may compete", entry.may_compete],
        ["passes on", passes_on],
        ["student's licence", entry.student_license or ("unknown" if is_unknown else "free to choose")],
        *[["duty", duty] for duty in verdict.duties],
        ["clause", entry.clause],
        ["source", entry.source],
        ["checked", entry.checked],
        *([["note", entry.note]] if entry.note else []),
    ]
    console.table(f"{entry.name} ({entry.key})", ["field", "terms"], rows)
    report = {"model": model, "purpose": purpose, **explain_terms(entry)}
    if suggestion := _suggestion(model, has_terms=entry.key != "unknown"):
        console.hint(suggestion)
    if asked_purpose:
        try:
            require_allowed(entry, asked_purpose, None)
        except TermsError as error:
            error.report = report
            raise
    console.data(report)


def _suggestion(model: str, *, has_terms: bool) -> str | None:
    """A hint if ``model`` is not a valid reference: the nearest key of the table or embedded model.

    Args:
        has_terms: whether the table has terms for ``model`` (a key, or the name of a model that is not here).
    """
    from stillhouse.errors import ModelNotFoundError
    from stillhouse.models import EMBEDDED, parse_reference
    from stillhouse.provenance import all_terms
    from stillhouse.recipe.suggest import nearest

    try:
        parse_reference(model)
    except ModelNotFoundError as error:
        choices = {entry.key: entry.key for entry in all_terms()}
        if model in choices:
            return None
        choices |= {name: f"embedded:{name}" for name in EMBEDDED}
        if not has_terms and (choice := nearest(model, choices)):
            return f"Did you mean `{choices[choice]}`?"
        return error.hint if error.hint and error.hint.startswith("Did you mean") else None
    return None


def _metadata(model: str) -> dict[str, str] | None:
    """What the model's own files say; None without local files, as for a bare key or name."""
    from stillhouse.models import license_fields

    return license_fields(model) or None
