"""What the filter kept and dropped, as a table that adds up, and warnings when it dropped much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping

from stillhouse.corpus.curate import checks
from stillhouse.recipe import Recipe

LARGE_SHARE = 0.25
"""A larger share of dropped exchanges is warned about."""
SPLITS = {"train": "training", "held_out": "held out"}


def filter_rows(
    kept: Mapping[str, int], rejected: Mapping[str, Mapping[str, int]], reasons: list[str]
) -> list[list[str]]:
    """One row for training and one for the held-out exchanges: all, kept, and dropped for each reason.

    Args:
        kept: number of kept exchanges by split.
        rejected: number of dropped ones by split and reason.
        reasons: the columns.
    """
    rows = []
    for split, name in SPLITS.items():
        counts = [rejected.get(split, {}).get(reason, 0) for reason in reasons]
        rows.append([name, *map(str, (kept[split] + sum(counts), kept[split], *counts))])
    return rows


def drop_warnings(
    recipe: Recipe, kept: Mapping[str, int], rejected: Mapping[str, Mapping[str, int]]
) -> Iterator[str]:
    """A sentence for each split of which more than a quarter was dropped: why, and what to set.

    Records that are no prompts, and prompts that overlap a held-out one, have their own messages and do
    not count.
    """
    settings = _settings(recipe)
    for split, name in SPLITS.items():
        dropped = Counter(
            {reason: count for reason, count in rejected.get(split, {}).items() if reason in settings}
        )
        total = kept[split] + dropped.total()
        if dropped.total() <= LARGE_SHARE * total:
            continue
        reason, count = dropped.most_common(1)[0]
        cause, change = settings[reason]
        yield (
            f"{name}: {total} exchanges became {kept[split]}; {count} were dropped because {cause}: {change} "
            "(corpus/rejects has each)"
        )


def _settings(recipe: Recipe) -> dict[str, tuple[str, str]]:
    """For each reason that a setting causes: the cause in words, and the change that keeps more."""
    limit, settings = recipe.collect.max_tokens, recipe.filter
    return {
        checks.TRUNCATED: (
            f"they are cut off at max_tokens {limit}",
            "raise collect.max_tokens or set filter.truncated: false",
        ),
        checks.EMPTY: (
            "they have no text",
            f"raise collect.max_tokens ({limit}), or ask another teacher",
        ),
        checks.CONTENT_FILTER: ("the provider's content filter cut them off", "see filter.content_filter"),
        checks.TOO_SHORT: (f"they have fewer than {settings.min_chars} characters", "lower filter.min_chars"),
        checks.TOO_LONG: (f"they have more than {settings.max_chars} characters", "raise filter.max_chars"),
        checks.REFUSAL: ("they are refusals", "look at them, or set filter.refusals: false"),
        checks.NEAR_DUPLICATE: ("they nearly repeat an earlier answer", "see filter.near_duplicates"),
        checks.CONTAMINATION: ("they share words with a held-out prompt", "see filter.contamination_ngram"),
        checks.FAILED: ("the provider failed in the middle of them", "collect again in a new run"),
    }
