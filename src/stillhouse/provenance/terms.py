"""The table of terms (``terms.yaml``): whose outputs may train another model, and on what conditions.

Reads the file and checks its form. Which entry a model falls under is found in
:mod:`.find`, what an entry means for a purpose in :mod:`.verdict`. The table is a
reading by engineers and no legal advice; it does not know agreements of your own.
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
Words = Annotated[str, MinLen(1)]

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")


@dataclass(frozen=True, kw_only=True)
class Match:
    """How a model is recognised; see :mod:`.find` for what is compared with what."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  pydantic's own name

    hosts: tuple[Words, ...] = ()
    """Hosts of the provider's API; subdomains count."""
    names: tuple[Words, ...] = ()
    """Regular expressions, searched in the model's name."""
    licenses: tuple[Words, ...] = ()
    """Values of a licence field, as :func:`.find.normal` writes them."""
    model_types: tuple[Words, ...] = ()
    """Architectures that only this family has; asked last."""


@dataclass(frozen=True, kw_only=True)
class Terms:
    """One licence, or one provider's contract."""

    __pydantic_config__ = {"extra": "forbid"}  # noqa: RUF012  pydantic's own name

    key: Words
    name: Words
    outputs_may_train: Answer
    """Whether what the model says, or its probabilities, may train another; `conditions`: see ``duties``."""
    own_family: bool = False
    """Where they may not: whether they still may train a model that is made from this one's own weights."""
    use: Use
    """The widest use that is granted at all."""
    may_compete: Answer
    """Whether the student may compete with the provider."""
    passes_on: bool | None
    """Whether a model trained on the outputs falls under these terms itself; None where nobody can say."""
    student_license: str | None = None
    """The licence that such a student then must have."""
    license: str | None = None
    """The licence of the weights, as the Hugging Face Hub writes it; None for a service."""
    keeps_license: bool = False
    """Whether a student that starts from the weights (pruned, or trained further) keeps that licence."""
    name_prefix: str | None = None
    """What the student's name must begin with."""
    credit: str | None = None
    """What must be displayed with the student, word for word."""
    duties: tuple[Words, ...] = ()
    """What has to be done, a sentence each."""
    clause: Words
    """The deciding clause in a few words of our own."""
    source: Words
    """Where it stands: title of the document, version, section."""
    checked: Words
    """The day on which the document's own text was read, or `unverified`."""
    note: str | None = None
    """What was not seen, or has to be known besides."""
    match: Match = field(default_factory=Match)


@cache
def all_terms() -> tuple[Terms, ...]:
    """Every entry of the table, in the file's order."""
    return parse_terms(resources.files("stillhouse.provenance").joinpath("terms.yaml").read_text("utf-8"))


@cache
def terms_by_key() -> dict[str, Terms]:
    """The table by key."""
    return {entry.key: entry for entry in all_terms()}


def parse_terms(text: str) -> tuple[Terms, ...]:
    """The entries in a table's YAML.

    Raises:
        pydantic.ValidationError: a field is missing, unknown or of the wrong type.
        AssertionError: the entries contradict themselves. Both are our mistakes, not a user's.
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
