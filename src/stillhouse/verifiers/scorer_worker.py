"""The child side of :mod:`.scorer_process`: loads one scorer and answers JSON lines until its input ends.

Output that a scorer prints goes to stderr, so that it cannot corrupt the replies.
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
    """math-verify: whether two answers are mathematically equal."""
    from math_verify import parse, verify

    seconds = max(1, round(settings["timeout_s"]))

    def score(question: Mapping[str, Any]) -> bool:
        gold = parse(as_latex(question["reference"]), parsing_timeout=seconds)
        if not gold:
            raise ValueError(f"the reference {question['reference'][:80]!r} is not mathematics")
        answer = parse(as_latex(question["answer"]), parsing_timeout=seconds)
        return verify(gold, answer, timeout_seconds=seconds)

    return score


def as_latex(text: str) -> str:
    """``text`` between dollar signs unless it has LaTeX marks: math-verify finds LaTeX only between marks."""
    return text if "$" in text or r"\boxed" in text or r"\(" in text or r"\[" in text else f"${text}$"


def gym_scorer(settings: Mapping[str, Any]) -> Scorer:
    """The scorer of the reasoning-gym dataset that the prompt came from."""
    from reasoning_gym import get_score_answer_fn

    scorers: dict[str, Any] = {}

    def score(question: Mapping[str, Any]) -> float:
        name = question["dataset"]
        if name not in scorers:
            scorers[name] = get_score_answer_fn(name)
        return scorers[name](question["answer"], question["entry"])

    return score


def function_scorer(settings: Mapping[str, Any]) -> Scorer:
    """The user's ``module:function``; the module may be in the current directory."""
    module_name, _, name = settings["function"].partition(":")
    sys.path.insert(0, str(Path.cwd()))
    function = getattr(importlib.import_module(module_name), name)
    if not callable(function):
        raise TypeError(f"{settings['function']} is not a function")
    return lambda question: function(question["row"])


SCORERS = {"math": math_scorer, "reasoning_gym": gym_scorer, "function": function_scorer}


def main() -> None:
    """Writes a line when the scorer is loaded, then a reply for each line of input."""
    settings = json.loads(sys.argv[1])
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()

    def reply(message: Mapping[str, Any]) -> None:
        replies.write(json.dumps(message) + "\n")
        replies.flush()

    try:
        score = SCORERS[settings["kind"]](settings)
    except BaseException as error:
        reply({"error": f"{type(error).__name__}: {error}"})
        return
    reply({})
    for line in sys.stdin:
        try:
            reply({"value": float(score(json.loads(line)))})
        except BaseException as error:
            reply({"error": f"{type(error).__name__}: {error}"[:500]})


def _exit_with_parent(parent: int) -> None:
    # A scorer that loops would outlive a killed parent: it never reads the end of its input.
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    main()
