"""Prompts inside installed Python packages, read without importing the package.

``mmlu``: the worked examples of lm-eval's MMLU tasks (`mmlu/flan_cot_fewshot`), questions
from MMLU (Hendrycks et al. 2021, MIT licence) over 57 subjects.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from stillhouse.errors import CorpusError, MissingExtraError

PACKAGES = ("mmlu",)


class _LmEvalTaskLoader(yaml.SafeLoader):
    """Reads tags such as ``!function``, which name code, as None."""


_LmEvalTaskLoader.add_multi_constructor("!", lambda loader, suffix, node: None)


def packaged_records(name: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The questions of a package in :data:`PACKAGES`, each with its location.

    Raises:
        MissingExtraError: the package is not installed.
    """
    assert name == "mmlu", name
    spec = importlib.util.find_spec("lm_eval")
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtraError(
            "package:mmlu needs the questions inside the lm-eval package, which is not installed",
            hint="pip install --no-deps lm-eval==0.4.13",
        )
    folder = Path(next(iter(spec.submodule_search_locations))) / "tasks" / "mmlu" / "flan_cot_fewshot"
    for path in sorted(folder.glob("mmlu_*.yaml")):
        yield from _questions(path)


def _questions(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    task = yaml.load(path.read_text("utf-8"), Loader=_LmEvalTaskLoader)
    try:
        samples = task["fewshot_config"]["samples"]
        for number, sample in enumerate(samples, 1):
            yield (
                f"{path}: sample {number}",
                {
                    "question": sample["question"].strip(),
                    "subject": path.stem.removeprefix("mmlu_"),
                    "target": sample["target"],
                },
            )
    except (KeyError, TypeError) as error:
        raise CorpusError(f"{path}: this version of lm-eval stores its questions in another form") from error
