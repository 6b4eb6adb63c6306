"""``--train.epochs 2`` on the command line: recipe values, gathered before the options are parsed.

The options themselves know nothing of the recipe's keys; whether a key exists and its
value fits is said by :mod:`stillhouse.recipe.load`, which names the override.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from stillhouse.errors import UsageError
from stillhouse.recipe import Recipe

OPTION = "--section.field"
VERBS = ("run", "plan", "collect", "train")
_TOP_LEVEL = {f.name for f in dataclasses.fields(Recipe)} | {"seeds"}
"""Keys of a recipe; `seeds` is a study's."""
_OWN_OPTION = "--accept-terms"
"""Not an override: its value is text, not YAML. Spelt with an underscore it is the recipe's key."""


def gather_overrides(tokens: Sequence[str]) -> list[str]:
    """Rewrites every ``--section.field VALUE`` of a verb that reads a recipe to one option with one value.

    ``["run", "r.yaml", "--train.epochs", "2"]`` becomes
    ``["run", "r.yaml", "--section.field=train.epochs=2"]``. ``--seed 1`` counts too: it is a field of the
    recipe itself. What follows a lone ``--`` stays as it is.

    Raises:
        UsageError: an override has no value.
    """
    if not tokens or tokens[0] not in VERBS:
        return list(tokens)
    gathered: list[str] = []
    rest = iter(tokens)
    for token in rest:
        if token == "--":
            return [*gathered, token, *rest]
        name, equals, value = token.removeprefix("--").partition("=")
        key = name.replace("-", "_")
        named = "." in key or key in _TOP_LEVEL
        if not token.startswith("--") or f"--{name}" in (OPTION, _OWN_OPTION) or not named:
            gathered.append(token)
            continue
        if not equals:
            try:
                value = next(rest)
            except StopIteration:
                raise UsageError(f"{token} needs a value", hint=f"E.g. {token} VALUE.") from None
        gathered.append(f"{OPTION}={key}={value}")
    return gathered
