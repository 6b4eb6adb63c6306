"""Finds the licence terms that a model falls under, from its name, its host and the metadata of its files.

Reads text only: opens no file and makes no connection. A name proves nothing; a user
who knows better declares the terms (``teacher.terms``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urlsplit

from stillhouse.errors import RecipeError
from stillhouse.provenance.terms import Terms, all_terms, terms_by_key
from stillhouse.recipe.suggest import did_you_mean

# metadata fields with the names of the model or its ancestors, and with its licence; GGUF adds `general.`
_NAME_FIELDS = ("name", "basename", "base_model", "teacher_model", "_name_or_path")
_LICENSE_FIELDS = ("license", "license_name", "license_link")
_TYPE_FIELDS = ("model_type", "architecture")
_NO_LICENSE = {"", "other", "unknown", "none", "license"}

_TRAINING = ("no", "unknown", "conditions", "yes")
_USE = ("research", "noncommercial", "any")


def find_terms(
    reference: str, *, declared: str | None = None, metadata: Mapping[str, str] | None = None
) -> Terms:
    """The entry of the table that ``reference`` falls under; `unknown` if no entry matches.

    In this order: a declared key; a key as the reference (without ``metadata``); the host of a known
    provider, whose contract governs all models that it serves; else the strictest of all entries that match
    by name, by licence field or by the name of a base model, so that a permissive label never overrides a
    strict origin; else the architecture, if only one family has it. A licence field that the table does not
    list counts as unknown.

    Args:
        reference: as in a recipe (``hub:org/name``, ``api:https://host/v1#name``, a path), or a name or key.
        declared: the recipe's ``teacher.terms``.
        metadata: fields of the model's own files: ``license``, ``license_name``, ``name``, ``base_model``,
            ``model_type`` …, with or without the prefix ``general.``.

    Raises:
        RecipeError: ``declared`` is not a key of the table.
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
    if metadata is None and reference in table:  # with metadata, `own` is a directory and its files decide
        return table[reference]
    if provider := _provider(reference):
        return provider
    fields = _fields(metadata or {})
    matches = _by_name(model_name(reference))
    for name in (fields[key] for key in _NAME_FIELDS if key in fields):
        provider = _provider(name)
        matches += [provider] if provider else _by_name(model_name(name) if name.startswith("api:") else name)
    matches += _by_license(fields)
    if not matches:
        matches = _by_type(fields)
    return min(matches, key=_strictness, default=table["unknown"])


def model_name(reference: str) -> str:
    """The part of a reference that names the model: ``org/name``, or a path's last component."""
    scheme, colon, rest = reference.strip().partition(":")
    if colon and scheme == "api":
        return rest.partition("#")[2]
    if colon and scheme in ("hub", "embedded"):
        return rest.partition("@")[0]
    if re.fullmatch(r"[\w.-]+/[\w.:-]+", reference.strip()):
        return reference.strip()
    return re.split(r"[/\\]", reference.strip().rstrip("/\\"))[-1]


def normalise(text: str) -> str:
    """A name or a licence field in lower case, with `-` for spaces and `_`."""
    return re.sub(r"[\s_]+", "-", text.strip().lower())


def _provider(reference: str) -> Terms | None:
    """The entry of the provider that runs the API in ``reference``, or None."""
    if not reference.startswith("api:"):
        return None
    try:
        host = urlsplit(reference.removeprefix("api:").strip()).hostname or ""
        host = host.rstrip(".")  # a fully qualified name may end with a dot; the table's hosts do not
    except ValueError:  # not a URL; parse_reference reports it when the model is loaded
        return None
    for entry in all_terms():
        if any(host == known or host.endswith(f".{known}") for known in entry.match.hosts):
            return entry
    return None


def _fields(metadata: Mapping[str, str]) -> dict[str, str]:
    return {key.removeprefix("general."): str(value) for key, value in metadata.items() if value}


def _by_name(name: str) -> list[Terms]:
    normalised = normalise(name)
    return [entry for entry in all_terms() if any(re.search(p, normalised) for p in entry.match.names)]


def _by_license(fields: Mapping[str, str]) -> list[Terms]:
    """Entries of the licence fields; `unknown` if these name a licence that no entry has."""
    values = [normalise(fields[key]) for key in _LICENSE_FIELDS if key in fields]
    values = [value for value in values if value not in _NO_LICENSE]
    matches = [entry for entry in all_terms() for value in values if value in entry.match.licenses]
    # a link may lead anywhere; only a name that the table lacks means an unknown licence
    licenses = [value for value in values if not value.startswith(("http:", "https:"))]
    return matches if matches or not licenses else [terms_by_key()["unknown"]]


def _by_type(fields: Mapping[str, str]) -> list[Terms]:
    types = {normalise(fields[key]) for key in _TYPE_FIELDS if key in fields}
    return [entry for entry in all_terms() if types & set(entry.match.model_types)]


def _strictness(entry: Terms) -> tuple[int, int, int, bool]:
    """A sort key; smaller is stricter."""
    return (
        _TRAINING.index(entry.outputs_may_train),
        _USE.index(entry.use),
        _TRAINING.index(entry.may_compete),
        not entry.passes_on,
    )
