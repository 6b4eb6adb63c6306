"""Questions for ``r1-qwen3.yaml``: families of reasoning-gym, easier settings to learn, harder ones held out.

The same seed gives the same files; no question of a test is among the prompts.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

LEARNED = {
    "chain_sum": {"min_terms": 3, "max_terms": 6, "min_digits": 2, "max_digits": 4},
    "leg_counting": {"min_animals": 3, "max_animals": 8},
    "count_bits": {"min_n": 1000, "max_n": 100_000},
    "gcd": {"min_numbers": 2, "max_numbers": 3},
    "simple_equations": {"min_terms": 2, "max_terms": 4},
    "basic_arithmetic": {"min_terms": 3, "max_terms": 6},
    "number_sorting": {"min_numbers": 4, "max_numbers": 8},
    "family_relationships": {"min_family_size": 4, "max_family_size": 6},
}
HARDER = {
    "chain_sum": {"min_terms": 8, "max_terms": 10, "min_digits": 4, "max_digits": 5},
    "leg_counting": {"min_animals": 10, "max_animals": 14},
    "count_bits": {"min_n": 10_000_000, "max_n": 1_000_000_000},
    "gcd": {"min_numbers": 4, "max_numbers": 5},
    "basic_arithmetic": {"min_terms": 8, "max_terms": 10},
    "simple_equations": {"min_terms": 6, "max_terms": 8},
    "number_sorting": {"min_numbers": 12, "max_numbers": 16},
    "family_relationships": {"min_family_size": 9, "max_family_size": 12},
}
REQUEST = "\n\nWrite the final answer, and nothing else, between <answer> and </answer>."


def make(directory: Path, seed: int, settings: dict[str, Any]) -> None:
    """Writes ``prompts.jsonl``, ``test_in.jsonl`` and ``test_out.jsonl`` of one seed into ``directory``.

    Args:
        settings: ``prompts`` and ``test``, how many questions there are of each kind.
    """
    directory.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    for number, (name, kinds, count) in enumerate(
        [
            ("test_in", LEARNED, settings["test"]),
            ("test_out", HARDER, settings["test"]),
            ("prompts", LEARNED, settings["prompts"]),
        ]
    ):
        with open(directory / f"{name}.jsonl", "w", encoding="utf-8") as file:
            for row in _tasks(kinds, count, 1_000_000 * (10 * seed + number), seen):
                file.write(json.dumps(row) + "\n")


def _tasks(kinds: dict[str, dict[str, int]], count: int, seed: int, seen: set[str]) -> list[dict[str, str]]:
    """``count`` tasks, the families in equal parts, none with a question in ``seen``, which grows."""
    from reasoning_gym import create_dataset

    rows = []
    for place, (name, settings) in enumerate(kinds.items()):
        wanted = count // len(kinds) + (place < count % len(kinds))
        for entry in create_dataset(name, size=4 * wanted + 100, seed=seed, **settings):
            if wanted and entry["question"] not in seen:
                seen.add(entry["question"])
                wanted -= 1
                rows.append(
                    {
                        "question": entry["question"] + REQUEST,
                        "answer": str(entry["answer"]),
                        "dataset": name,
                        "entry": json.dumps(entry),
                    }
                )
        assert not wanted, f"{name} has not enough different questions"
    random.Random(seed).shuffle(rows)
    return rows
