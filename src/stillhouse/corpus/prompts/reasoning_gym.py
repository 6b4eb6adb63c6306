"""Prompts made by reasoning-gym: tasks without end, whose answers a program can check.

    reasoning_gym:chain_sum?size=200&seed=7&min_terms=2&max_terms=3

What follows the question mark goes to the dataset's own configuration. Each prompt's tags
hold the reference ``answer``, the ``dataset`` and the whole ``entry`` (JSON text), from
which the verifier `reasoning_gym` scores (Stojanovski et al. 2025, arXiv:2505.24760).
"""

from __future__ import annotations

import difflib
import importlib.util
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import parse_qsl

from stillhouse.errors import CorpusError, MissingExtraError

PREFIX = "reasoning_gym:"
SIZE, SEED = 200, 0
UNCHECKABLE = ("arc_agi", "composite", "rearc")
"""Datasets whose entries do not come back from JSON as their scorers need them."""


def generated_records(source: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The tasks that ``source`` names, each with the place where it stands.

    Raises:
        MissingExtraError: reasoning-gym is not installed.
        CorpusError: there is no such dataset, or it does not take these settings.
    """
    name, _, query = source.removeprefix(PREFIX).partition("?")
    if importlib.util.find_spec("reasoning_gym") is None:
        raise MissingExtraError(
            f"{source} needs the package reasoning-gym, which is not installed",
            hint='pip install "stillhouse[reasoning]"',
        )
    from reasoning_gym import create_dataset
    from reasoning_gym.factory import DATASETS

    if name not in DATASETS or name in UNCHECKABLE:
        near = difflib.get_close_matches(name, DATASETS, 3)
        raise CorpusError(
            f"reasoning-gym has no dataset {name!r} that can be checked here",
            hint=f"Near it: {', '.join(near)}." if near else None,
        )
    settings = {"size": SIZE, "seed": SEED} | {key: _value(text) for key, text in parse_qsl(query, True)}
    try:
        dataset = create_dataset(name, **settings)
        entries = [dataset[index] for index in range(len(dataset))]
    except Exception as error:
        raise CorpusError(f"{source}: {type(error).__name__}: {error}") from error
    for number, entry in enumerate(entries, 1):
        yield (
            f"{source}: task {number}",
            {
                "question": entry["question"],
                "answer": str(entry["answer"]),
                "dataset": name,
                "entry": json.dumps(entry, ensure_ascii=False, default=str),
            },
        )


def _value(text: str) -> Any:
    """A number, true, false or a list as JSON spells them; anything else is text."""
    try:
        return json.loads(text)
    except ValueError:
        return text
