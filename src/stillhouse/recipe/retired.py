"""Keys that recipes no longer have, and what older runs still need of them.

The resolved ``recipe.yaml`` of an older run lists every key of its time. A retired key with its old
default is accepted and dropped, so that such a run resumes; another value is an error that names the
replacement. Manifests hold hashes of whole sections, taken with these keys: :func:`restore_retired`
puts them back before a section is hashed, or every finished stage would count as changed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

RetiredValues = dict[str, dict[str, Any]]
"""Values of retired keys by section and key."""


@dataclass(frozen=True)
class RetiredKey:
    """A key that was removed."""

    default: Any
    position: int
    """Index among the section's keys, as an older version wrote them."""
    replacement: str


RETIRED: dict[str, dict[str, RetiredKey]] = {
    "filter": {
        "empty": RetiredKey(
            True,
            0,
            "was removed: an answer without text is always dropped (with `truncated: false`, one that was "
            "cut off in its thoughts stays); remove this line",
        ),
        "verifier": RetiredKey(
            None,
            8,
            "was replaced by `verifiers`: use `verifiers: [{kind: function, function: 'module:function'}]` "
            "with `select: {per_prompt: null}`; the function gets `text`, `reasoning`, `tags` and `messages` "
            "(docs/verifiers.md)",
        ),
    }
}


def take_retired(values: dict[str, Any]) -> RetiredValues:
    """Removes the retired keys from a recipe's ``values`` and returns what they held."""
    taken: RetiredValues = {}
    for section, keys in RETIRED.items():
        written = values.get(section)
        if isinstance(written, dict):
            taken[section] = {key: written.pop(key) for key in keys if key in written}
    return taken


def retired_complaints(taken: RetiredValues) -> Iterator[tuple[tuple[str, str], str]]:
    """A key path and a message for each value in ``taken`` that is not the old default."""
    for section, values in taken.items():
        for key, value in values.items():
            retired = RETIRED[section][key]
            # `is`, since 1 == True: only what an older version wrote itself passes.
            if value is not retired.default:
                yield (section, key), retired.replacement


def restore_retired(
    section: str, fields: Mapping[str, Any], taken: RetiredValues | None = None
) -> dict[str, Any]:
    """The fields of a section with its retired keys, as an older version had them.

    Args:
        taken: what the keys held (default: their old defaults).
    """
    values = (taken or {}).get(section, {})
    restored = list(fields.items())
    for key, retired in RETIRED.get(section, {}).items():
        restored.insert(retired.position, (key, values.get(key, retired.default)))
    return dict(restored)
