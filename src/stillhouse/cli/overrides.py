"""Recipe values on the command line (``--train.epochs 2``), collected before the options are parsed.

The option parser does not know the recipe's keys; :mod:`stillhouse.recipe.load` validates
keys and values, and its errors name the override.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from stillhouse.errors import UsageError
from stillhouse.recipe import Recipe

OPTION = "--section.field"
VERBS = ("run", "plan", "collect", "train")
_TOP_LEVEL = {f.name for f in dataclasses.fields(Recipe)} | {"seeds"}
"""Top-level keys of a recipe; `seeds` belongs to a study."""
_OWN_OPTION = "--accept-terms"
"""Not an override: its value is text, not YAML. With an underscore it is the recipe's key."""


def gather_overrides(tokens: Sequence[str]) -> list[str]:
    """Rewrites each override of a verb that reads a recipe to the option ``--section.field`` with one value.

    ``["run", "r.yaml", "--train.epochs", "2"]`` becomes
    ``["run", "r.yaml", "--section.field=train.epochs=2"]``. ``--seed 1`` is also an override: a top-level
    key of the recipe. Tokens after a lone ``--`` do not change.

    Raises:
        UsageError: an override has no value.
    """
    if not tokens or tokens[0] not in VERBS:
        return list(tokens)
    rewritten: list[str] = []
    rest = iter(tokens)
    for token in rest:
        if token == "--":
            return [*rewritten, token, *rest]
        name, equals, value = token.removeprefix("--").partition("=")
        key = name.replace(
            "-", "_"
        )  # cyclopts spells options with hyphens, recipes spell keys with underscores
        is_recipe_key = "." in key or key in _TOP_LEVEL
        if not token.startswith("--") or f"--{name}" in (OPTION, _OWN_OPTION) or not is_recipe_key:
            rewritten.append(token)
            continue
        if not equals:
            try:
                value = next(rest)
            except StopIteration:
                raise UsageError(f"{token} needs a value", hint=f"E.g. {token} VALUE.") from None
        rewritten.append(f"{OPTION}={key}={value}")
    return rewritten
