"""What terms mean for a purpose: allowed, refused, or unknown, with the duties.

Judges an entry of the table; it does not judge the world. ``research`` and ``personal``
are without commercial advantage, ``competing`` is commercial use against the provider.
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
    """Whether a teacher may teach for a purpose."""

    allowed: bool | None
    """None: nobody knows."""
    reason: str
    """One line."""
    duties: tuple[str, ...] = ()
    """What has to be done in return; empty when refused."""
    accepted: str | None = None
    """Why unknown terms were accepted, in the user's words."""


def judge_terms(terms: Terms, purpose: Purpose, *, student: Terms | None = None) -> TermsVerdict:
    """Whether outputs under ``terms`` may train a student for ``purpose``.

    Args:
        student: the terms of the weights that the student starts from, unless it starts from nothing. Some
            licences let their outputs improve their own family only.
    """
    assert purpose in get_args(Purpose)
    training = _training(terms, student)
    if training == "no":
        only = ", except models made from its own weights" if terms.own_family else ""
        return TermsVerdict(False, f"{terms.name}: outputs may not train other models{only}")
    for whose, found in (("", terms), ("the student's starting weights are under ", student)):
        if found is not None and purpose not in _PURPOSES_OF_USE[found.use]:
            return TermsVerdict(
                False, f"{whose}{found.name}: {found.use} use only, so not for a {purpose} purpose"
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
    """The verdict, when the run may go on.

    Unknown terms may be accepted with a reason, which the verdict then carries; a ban may not.

    Args:
        accept_terms: the user's reason; blank is none.
        student: see :func:`judge_terms`.

    Raises:
        TermsError: (exit status 3) refused, or unknown and not accepted; with the clause, where it stands,
            and what to do.
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
            hint="If you know better, name the terms (teacher.terms, see `still terms`), or accept that they "
            'are unknown: --accept-terms "the reason", which is recorded for good.',
        )
    raise TermsError(
        f"{verdict.reason}. {terms.clause} (source: {terms.source}; checked: {terms.checked})",
        hint=_instead(terms, purpose, student),
    )


def require_all_allowed(
    terms: Iterable[Terms], purpose: Purpose, accept_terms: str | None, *, student: Terms | None = None
) -> TermsVerdict:
    """:func:`require_allowed` for each teacher of a student, and what they say together."""
    return combine_verdicts(require_allowed(each, purpose, accept_terms, student=student) for each in terms)


def combine_verdicts(verdicts: Iterable[TermsVerdict]) -> TermsVerdict:
    """The verdict on all teachers of a student: as strict as the strictest, with everybody's duties."""
    found = list(verdicts)
    answers = [verdict.allowed for verdict in found]
    return TermsVerdict(
        False if False in answers else None if None in answers else True,
        "; ".join(dict.fromkeys(verdict.reason for verdict in found)),
        tuple(dict.fromkeys(duty for verdict in found for duty in verdict.duties)),
        next((verdict.accepted for verdict in found if verdict.accepted), None),
    )


def _instead(terms: Terms, purpose: Purpose, student: Terms | None) -> str:
    """What to do about a refusal."""
    others = [p for p in get_args(Purpose) if p != purpose and judge_terms(terms, p, student=student).allowed]
    ways = [f"if it is true, set purpose to {' or '.join(others)}"] if others else []
    if terms.own_family and student is None:
        ways.append("start the student from the teacher's own weights (student.init: prune)")
    ways.append("take a teacher whose terms allow it (`still terms` lists them)")
    ways.append("with the provider's written permission, set teacher.terms to `agreement`")
    text = "; or ".join(ways)
    return f"{text[0].upper()}{text[1:]}."


def naming_warning(terms: Terms, name: str) -> str | None:
    """What is wrong with a student's name under the teacher's terms, or None."""
    if terms.name_prefix is None or name.casefold().startswith(terms.name_prefix.casefold()):
        return None
    return (
        f'{terms.name} asks that the name of a student you give away begin with "{terms.name_prefix}"; '
        f'"{name}" does not.'
    )


def explain_terms(terms: Terms) -> dict[str, Any]:
    """Everything known of ``terms`` as plain data: the fields, and the verdict for each purpose."""
    fields = {k: v for k, v in dataclasses.asdict(terms).items() if k != "match"}
    verdicts = {purpose: dataclasses.asdict(judge_terms(terms, purpose)) for purpose in get_args(Purpose)}
    return fields | {"verdicts": verdicts}
