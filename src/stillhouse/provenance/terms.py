"""The table of terms (``terms.yaml``): which models' outputs may train another model, and on what conditions.

Reads and validates the file. :mod:`.find` finds the entry of a model, :mod:`.verdict`
decides what an entry means for a purpose. The table is a reading by engineers, not legal
advice; it does not know your own agreements.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Annotated, Literal

from annotated_types import MinLen

Answer = Literal["yes", "no", "conditions", "unknown"]
Use = Literal["any", "noncommercial", "research"]
Text = Annotated[str, MinLen(1)]

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True, kw_only=True)
class Match:
    """Patterns that identify a model; :mod:`.find` compares them with names and metadata."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  pydantic's own name

    hosts: tuple[Text, ...] = ()
    """Hosts of the provider's API; subdomains count."""
    names: tuple[Text, ...] = ()
    """Regular expressions, searched in the model's name."""
    licenses: tuple[Text, ...] = ()
    """Values of a licence field, as :func:`.find.normalise` writes them."""
    model_types: tuple[Text, ...] = ()
    """Architectures that only this family has; checked last."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """One licence, or one provider's contract."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  pydantic's own name

    key: Text
    name: Text
    outputs_may_train: Answer
    """Whether the model's text or probabilities may train another model; `conditions`: see ``duties``."""
    own_family: bool = False
    """Whether outputs that may not train other models may still train one made from this model's weights."""
    use: Use
    """The widest use that is granted."""
    may_compete: Answer
    """Whether the student may compete with the provider."""
    passes_on: bool | None
    """Whether a model trained on the outputs falls under these terms itself; None if unknown."""
    student_license: str | None = None
    """The licence that such a student must have."""
    license: str | None = None
    """The licence of the weights, as the Hugging Face Hub writes it; None for a service."""
    keeps_license: bool = False
    """Whether a student that starts from the weights (pruned, or trained further) keeps that licence."""
    name_prefix: str | None = None
    """Required prefix of the student's name."""
    credit: str | None = None
    """Text that must be displayed with the student, word for word."""
    duties: tuple[Text, ...] = ()
    """What the user must do, one sentence each."""
    clause: Text
    """The deciding clause, paraphrased."""
    source: Text
    """Source of the clause: title of the document, version, section."""
    checked: Text
    """The day on which the document itself was read, or `unverified`."""
    note: str | None = None
    """What was not read, or other remarks."""
    match: Match = field(default_factory=Match)


@cache
def all_terms() -> tuple[Terms, ...]:
    """All entries of the table, in the file's order."""
    return parse_terms(resources.files("stillhouse.provenance").joinpath("terms.yaml").read_text("utf-8"))


@cache
def terms_by_key() -> dict[str, Terms]:
    """The table by key."""
    return {entry.key: entry for entry in all_terms()}


def parse_terms(text: str) -> tuple[Terms, ...]:
    """The entries in a table's YAML.

    Raises:
        pydantic.ValidationError: a field is missing, unknown or of the wrong type.
        AssertionError: an entry contradicts itself. Both are errors of the table, not of a user.
    """
    import yaml
    from pydantic import TypeAdapter

    entries = TypeAdapter(tuple[Terms, ...]).validate_python(yaml.safe_load(text))
    assert len({entry.key for entry in entries}) == len(entries), "two entries with one key"
    for entry in entries:
        _check(entry)
    return entries


def _check(entry: Terms) -> None:
    assert entry.checked == "unverified" or _DATE.fullmatch(entry.checked), f"{entry.key}: checked"
    assert entry.outputs_may_train != "conditions" or entry.duties, f"{entry.key}: conditions without duties"
    assert entry.outputs_may_train == "no" or not entry.own_family, f"{entry.key}: own_family without a ban"
    assert (entry.passes_on is True) == (entry.student_license is not None), f"{entry.key}: student_license"
    assert not entry.keeps_license or entry.license, f"{entry.key}: keeps_license without a licence"
    for pattern in entry.match.names:
        re.compile(pattern)
