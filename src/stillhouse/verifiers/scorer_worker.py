"""The child's side of :mod:`.scorer_process`: loads one scorer, then answers JSON lines until its input ends.

What a scorer prints goes to stderr, so that it cannot garble the answers.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Scorer = Callable[[Mapping[str, Any]], Any]


def math_scorer(settings: Mapping[str, Any]) -> Scorer:
    """math-verify: whether two answers are the same mathematics."""
    from math_verify import parse, verify

    seconds = max(1, round(settings["timeout_s"]))

    def score(question: Mapping[str, Any]) -> bool:
        gold = parse(as_mathematics(question["reference"]), parsing_timeout=seconds)
        if not gold:
            raise ValueError(f"the reference {question['reference'][:80]!r} is no mathematics")
        return verify(
            gold, parse(as_mathematics(question["said"]), parsing_timeout=seconds), timeout_seconds=seconds
        )

    return score


def as_mathematics(text: str) -> str:
    """Bare LaTeX between dollars: math-verify looks for LaTeX only where something says that it is."""
    return text if "$" in text or r"\boxed" in text or r"\(" in text or r"\[" in text else f"${text}$"


def gym_scorer(settings: Mapping[str, Any]) -> Scorer:
    """The scorer of the reasoning-gym dataset that the prompt came from."""
    from reasoning_gym import get_score_answer_fn

    scorers: dict[str, Any] = {}

    def score(question: Mapping[str, Any]) -> float:
        name = question["dataset"]
        if name not in scorers:
            scorers[name] = get_score_answer_fn(name)
        return scorers[name](question["said"], question["entry"])

    return score


def function_scorer(settings: Mapping[str, Any]) -> Scorer:
    """The user's ``module:function``; modules in the current directory are found too."""
    module_name, _, name = settings["function"].partition(":")
    sys.path.insert(0, str(Path.cwd()))
    function = getattr(importlib.import_module(module_name), name)
    if not callable(function):
        raise TypeError(f"{settings['function']} is no function")
    return lambda question: function(question["row"])


SCORERS = {"math": math_scorer, "reasoning_gym": gym_scorer, "function": function_scorer}


def main() -> None:
    """Ready line first, then an answer for each line of input."""
    settings = json.loads(sys.argv[1])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    threading.Thread(target=_die_with, args=(os.getppid(),), daemon=True).start()

    def say(reply: Mapping[str, Any]) -> None:
        answers.write(json.dumps(reply) + "\n")
        answers.flush()

    try:
        score = SCORERS[settings["kind"]](settings)
    except BaseException as error:
        say({"error": f"{type(error).__name__}: {error}"})
        return
    say({})
    for line in sys.stdin:
        try:
            say({"value": float(score(json.loads(line)))})
        except BaseException as error:
            say({"error": f"{type(error).__name__}: {error}"[:500]})


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main()
