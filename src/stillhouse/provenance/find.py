"""Which terms a model falls under: by what it is called, where it is reached, and what its files say.

Looks at text only: no file is opened and no connection made. A name proves nothing;
whoever knows better declares it (``teacher.terms``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from stillhouse.errors import RecipeError
from stillhouse.provenance.terms import Terms, all_terms, terms_by_key
from stillhouse.recipe.suggest import did_you_mean

# fields that name the model or its ancestors, and fields that name its licence (GGUF: `general.` before both)
_NAME_FIELDS = ("name", "basename", "base_model", "teacher_model", "_name_or_path")
_LICENSE_FIELDS = ("license", "license_name", "license_link")
_TYPE_FIELDS = ("model_type", "architecture")
_SAYS_NOTHING = {"", "other", "unknown", "none", "license"}

_TRAINING = ("no", "unknown", "conditions", "yes")
_USE = ("research", "noncommercial", "any")


def find_terms(
    reference: str, *, declared: str | None = None, metadata: Mapping[str, str] | None = None
) -> Terms:
    """The entry of the table that ``reference`` falls under; `unknown` where nothing fits.

    In this order: a declared key; a key given as reference (without ``metadata``); the host of a known
    provider, whose contract governs whatever it serves; else everything that fits by name, by licence field
    or by the name of a base model, of which the strictest counts, so that a lax label never beats a strict
    origin; else the architecture, where only one family has it. A licence field that the table does not list
    counts as unknown.

    Args:
        reference: as in a recipe (``hub:org/name``, ``api:https://host/v1#name``, a path), or a name or key.
        declared: the recipe's ``teacher.terms``.
        metadata: fields of the model's own files: ``license``, ``license_name``, ``name``, ``base_model``,
            ``model_type`` …, with or without ``general.`` before them.

    Raises:
        RecipeError: ``declared`` is no key of the table.
    """
    table = terms_by_key()
    if declared is not None:
        if declared not in table:
            near = did_you_mean(declared, table)
            raise RecipeError(
                f"teacher.terms: there are no terms {declared!r}",
                hint=f"{near} `still terms` lists them all." if near else "`still terms` lists them all.",
            )
        return table[declared]
    if metadata is None and reference in table:  # a directory called `own` has files that say more
        return table[reference]
    if provider := _provider(reference):
        return provider
    fields = _fields(metadata or {})
    found = _by_name(model_name(reference))
    for name in (fields[key] for key in _NAME_FIELDS if key in fields):
        provider = _provider(name)
        found += [provider] if provider else _by_name(model_name(name) if name.startswith("api:") else name)
    found += _by_license(fields)
    if not found:
        found = _by_type(fields)
    return min(found, key=_strictness, default=table["unknown"])


def model_name(reference: str) -> str:
    """The part of a reference that says which model it is: ``org/name``, or a path's last component."""
    scheme, colon, rest = reference.strip().partition(":")
    if colon and scheme == "api":
        return rest.partition("#")[2]
    if colon and scheme in ("hub", "embedded"):
        return rest.partition("@")[0]
    if re.fullmatch(r"[\w.-]+/[\w.:-]+", reference.strip()):
        return reference.strip()
    return re.split(r"[/\\]", reference.strip().rstrip("/\\"))[-1]


def normal(text: str) -> str:
    """A name or a licence field in lower case, with `-` for spaces and `_`."""
    return re.sub(r"[\s_]+", "-", text.strip().lower())


def _provider(reference: str) -> Terms | None:
    """The entry whose provider runs the API that is named."""
    if not reference.startswith("api:"):
        return None
    try:
        host = urlsplit(reference.removeprefix("api:").strip()).hostname or ""
        host = host.rstrip(".")  # the root of all names, which no certificate and no table writes
    except ValueError:  # no address; parse_reference says so where it matters
        return None
    for entry in all_terms():
        if any(host == known or host.endswith(f".{known}") for known in entry.match.hosts):
            return entry
    return None


def _fields(metadata: Mapping[str, str]) -> dict[str, str]:
    return {key.removeprefix("general."): str(value) for key, value in metadata.items() if value}


def _by_name(name: str) -> list[Terms]:
    plain = normal(name)
    return [entry for entry in all_terms() if any(re.search(p, plain) for p in entry.match.names)]


def _by_license(fields: Mapping[str, str]) -> list[Terms]:
    """Entries of the licence fields; `unknown` when they name a licence that no entry has."""
    named = [normal(fields[key]) for key in _LICENSE_FIELDS if key in fields]
    named = [value for value in named if value not in _SAYS_NOTHING]
    found = [entry for entry in all_terms() for value in named if value in entry.match.licenses]
    said = [value for value in named if not value.startswith(("http:", "https:"))]
    return found if found or not said else [terms_by_key()["unknown"]]


def _by_type(fields: Mapping[str, str]) -> list[Terms]:
    types = {normal(fields[key]) for key in _TYPE_FIELDS if key in fields}
    return [entry for entry in all_terms() if types & set(entry.match.model_types)]


def _strictness(entry: Terms) -> tuple[int, int, int, bool]:
    """Smaller is stricter; equal entries stay in the order in which they were found."""
    return (
        _TRAINING.index(entry.outputs_may_train),
        _USE.index(entry.use),
        _TRAINING.index(entry.may_compete),
        not entry.passes_on,
    )
