"""Decides whether licence terms allow a purpose: allowed, refused or unknown, with the duties.

A verdict is about an entry of the table, not about the law. ``research`` and ``personal``
mean use without commercial advantage; ``competing`` is commercial use that competes with
the provider.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, get_args

from stillhouse.errors import TermsError
from stillhouse.provenance.terms import Answer, Terms
from stillhouse.recipe import Purpose

_PURPOSES_OF_USE: dict[str, tuple[Purpose, ...]] = {
    "research": ("research",),
    "noncommercial": ("research", "personal"),
    "any": ("research", "personal", "commercial", "competing"),
}


@dataclass(frozen=True)
class TermsVerdict:
    """Whether a teacher's outputs may train a student for a purpose."""

    allowed: bool | None
    """None if unknown."""
    reason: str
    """One line."""
    duties: tuple[str, ...] = ()
    """What the user must do in return; empty if refused."""
    accepted: str | None = None
    """Why unknown terms were accepted, in the user's words."""


def judge_terms(terms: Terms, purpose: Purpose, *, student: Terms | None = None) -> TermsVerdict:
    """Whether outputs under ``terms`` may train a student for ``purpose``.

    Args:
        student: terms of the weights that the student starts from, if any. Some licences allow their
            outputs to improve models of their own family only.
    """
    assert purpose in get_args(Purpose)
    # refusals before unknowns: a reason can lift an unknown but not a refusal
    training = _training(terms, student)
    if training == "no":
        only = ", except models made from its own weights" if terms.own_family else ""
        return TermsVerdict(False, f"{terms.name}: outputs may not train other models{only}")
    for prefix, entry in (("", terms), ("the student's starting weights are under ", student)):
        if entry is not None and purpose not in _PURPOSES_OF_USE[entry.use]:
            return TermsVerdict(
                False, f"{prefix}{entry.name}: {entry.use} use only, so not for a {purpose} purpose"
            )
    if purpose == "competing" and terms.may_compete == "no":
        return TermsVerdict(False, f"{terms.name}: the student may not compete with the provider")
    if training == "unknown":
        return TermsVerdict(
            None, f"{terms.name}: whether outputs may train other models is unknown", terms.duties
        )
    if purpose == "competing" and terms.may_compete == "unknown":
        return TermsVerdict(None, f"{terms.name}: whether the student may compete is unknown", terms.duties)
    if terms.duties:
        return TermsVerdict(
            True, f"{terms.name}: outputs may train other models, under conditions", terms.duties
        )
    return TermsVerdict(True, f"{terms.name}: outputs may train other models")


def _training(terms: Terms, student: Terms | None) -> Answer:
    if terms.own_family and student is not None and student.key == terms.key:
        return "conditions"
    return terms.outputs_may_train


def require_allowed(
    terms: Terms, purpose: Purpose, accept_terms: str | None, *, student: Terms | None = None
) -> TermsVerdict:
    """Returns the verdict if the purpose is allowed, else raises.

    A user can accept unknown terms with a reason, which the verdict then records, but not a refusal.

    Args:
        accept_terms: the user's reason; a blank one does not count.
        student: see :func:`judge_terms`.

    Raises:
        TermsError: (exit status 3) refused, or unknown and not accepted; the message has the clause and its
            source, the hint what to do.
    """
    verdict = judge_terms(terms, purpose, student=student)
    accepted = (accept_terms or "").strip()
    if verdict.allowed:
        return verdict
    if verdict.allowed is None:
        if accepted:
            return dataclasses.replace(
                verdict, reason=f"{verdict.reason}; accepted: {accepted}", accepted=accepted
            )
        raise TermsError(
            f"{verdict.reason}. {terms.clause} (source: {terms.source}; checked: {terms.checked})",
            hint="If you know the terms, set teacher.terms (see `still terms`); or accept unknown terms with "
            '--accept-terms "the reason", which is recorded permanently.',
        )
    raise TermsError(
        f"{verdict.reason}. {terms.clause} (source: {terms.source}; checked: {terms.checked})",
        hint=_alternatives(terms, purpose, student),
    )


def require_all_allowed(
    terms: Iterable[Terms], purpose: Purpose, accept_terms: str | None, *, student: Terms | None = None
) -> TermsVerdict:
    """:func:`require_allowed` for each teacher of a student; returns the combined verdict."""
    return combine_verdicts(require_allowed(entry, purpose, accept_terms, student=student) for entry in terms)


def combine_verdicts(verdicts: Iterable[TermsVerdict]) -> TermsVerdict:
    """The verdict on all teachers of a student: the strictest answer, with the duties of all."""
    members = list(verdicts)
    answers = [verdict.allowed for verdict in members]
    return TermsVerdict(
        False if False in answers else None if None in answers else True,
        "; ".join(dict.fromkeys(verdict.reason for verdict in members)),
        tuple(dict.fromkeys(duty for verdict in members for duty in verdict.duties)),
        next((verdict.accepted for verdict in members if verdict.accepted), None),
    )


def _alternatives(terms: Terms, purpose: Purpose, student: Terms | None) -> str:
    """What a user can do about a refusal."""
    others = [p for p in get_args(Purpose) if p != purpose and judge_terms(terms, p, student=student).allowed]
    ways = [f"if that is your purpose, set purpose to {' or '.join(others)}"] if others else []
    if terms.own_family and student is None:
        ways.append("start the student from the teacher's own weights (student.init: prune)")
    ways.append("use a teacher whose terms allow it (`still terms` lists them)")
    ways.append("with the provider's written permission, set teacher.terms to `agreement`")
    text = "; or ".join(ways)
    return f"{text[0].upper()}{text[1:]}."


def naming_warning(terms: Terms, name: str) -> str | None:
    """A warning if a student's name breaks the teacher's terms, else None."""
    if terms.name_prefix is None or name.casefold().startswith(terms.name_prefix.casefold()):
        return None
    return (
        f'{terms.name} requires that the name of a student you distribute begin with "{terms.name_prefix}"; '
        f'"{name}" does not.'
    )


def explain_terms(terms: Terms) -> dict[str, Any]:
    """``terms`` as plain data: the fields, and the verdict for each purpose."""
    fields = {k: v for k, v in dataclasses.asdict(terms).items() if k != "match"}
    verdicts = {purpose: dataclasses.asdict(judge_terms(terms, purpose)) for purpose in get_args(Purpose)}
    return fields | {"verdicts": verdicts}
