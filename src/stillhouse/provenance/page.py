"""The table of terms as a page of the documentation (``docs/terms-table.md``)."""

from __future__ import annotations

from typing import get_args

from stillhouse.provenance.terms import Terms, all_terms
from stillhouse.provenance.verdict import judge_terms
from stillhouse.recipe import Purpose

_MARKS = {True: "yes", False: "no", None: "unknown"}


def terms_page() -> str:
    """Every entry: what it allows for each purpose, its duties, and where that stands."""
    purposes = get_args(Purpose)
    lines = [
        "<!-- Made by `make docs`; edit src/stillhouse/provenance/terms.yaml instead. -->",
        "",
        "# The table of terms",
        "",
        "A reading by engineers, not legal advice; [terms.md](terms.md) explains the columns. “yes” may ask",
        "duties, which stand below the table; “unknown” needs a reason (`--accept-terms`).",
        "",
        "| key | terms | " + " | ".join(purposes) + " | passes on | checked |",
        "|" + "---|" * (len(purposes) + 4),
    ]
    for entry in all_terms():
        marks = [_MARKS[judge_terms(entry, purpose).allowed] for purpose in purposes]
        cells = [f"`{entry.key}`", entry.name, *marks, _MARKS[entry.passes_on], entry.checked]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, *(line for entry in all_terms() for line in _details(entry))]) + "\n"


def _details(entry: Terms) -> list[str]:
    lines = ["", f"## {entry.key}", "", f"{entry.name}. {entry.clause}", ""]
    lines.append(f"- where: {entry.source}")
    lines.append(f"- checked: {entry.checked}")
    if entry.own_family:
        lines.append("- a student made from its own weights may be trained all the same")
    lines += [f"- duty: {duty}" for duty in entry.duties]
    if entry.student_license:
        lines.append(f"- licence of the student: {entry.student_license}")
    elif entry.keeps_license:
        lines.append(f"- licence of a student that starts from its weights: {entry.license}")
    if entry.note:
        lines.append(f"- note: {entry.note}")
    return lines
