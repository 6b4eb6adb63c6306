"""Tokens per second, every model measured in turn within one process.

The models take turns, round by round, so that a busy moment of the machine hits all of
them; the median of the rounds is reported with the slowest and the fastest. These are
speeds of transformers at batch size 1 in the type the weights were loaded in: they
compare the models here, and promise nothing of another machine or server.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NEW_TOKENS = 32
ROUNDS = 3
WARM_UP_TOKENS = 4


@dataclass(frozen=True)
class Speed:
    """Tokens per second: the median of the rounds, the slowest and the fastest."""

    median: float
    low: float
    high: float

    def to_dict(self) -> dict[str, Any]:
        """As it stands in ``report.json``."""
        return asdict(self)


@dataclass(frozen=True)
class Speeds:
    """How fast a model writes (one token at a time) and reads (a whole text at once)."""

    generate: Speed
    score: Speed


def measure_speed(
    models: Mapping[str, PreTrainedModel],
    ids_T: Tensor,
    *,
    new_tokens: int = NEW_TOKENS,
    rounds: int = ROUNDS,
    clock: Callable[[], float] = time.perf_counter,
    on_round: Callable[[], None] = lambda: None,
) -> dict[str, Speeds]:
    """Speeds of ``models`` at batch size 1, after a short round that does not count.

    Args:
        models: at least one, under the names of the result.
        ids_T: [T] token ids of a text that all of them know. Reading scores all T; writing
            goes on greedily from it for exactly ``new_tokens``, and its time includes reading.
        clock: seconds.
        on_round: called after each round, the first that does not count included.
    """
    writing: dict[str, list[float]] = {name: [] for name in models}
    reading: dict[str, list[float]] = {name: [] for name in models}
    for round_number in range(rounds + 1):
        length = new_tokens if round_number else min(WARM_UP_TOKENS, new_tokens)
        for name, model in models.items():
            wrote = length / _seconds(lambda m=model, n=length: _write(m, ids_T, n), model, clock)
            read = len(ids_T) / _seconds(lambda m=model: _read(m, ids_T), model, clock)
            if round_number:
                writing[name].append(wrote)
                reading[name].append(read)
        on_round()
    return {name: Speeds(_summary(writing[name]), _summary(reading[name])) for name in models}


def _summary(rates: list[float]) -> Speed:
    return Speed(statistics.median(rates), min(rates), max(rates))


def _seconds(work: Callable[[], None], model: PreTrainedModel, clock: Callable[[], float]) -> float:
    _wait_for(model)
    started = clock()
    work()
    _wait_for(model)
    return clock() - started


def _wait_for(model: PreTrainedModel) -> None:
    """Work on a GPU is queued; without this only the queueing would be timed."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


@torch.no_grad()
def _read(model: PreTrainedModel, ids_T: Tensor) -> None:
    model(input_ids=ids_T[None].to(model.device), use_cache=False)


@torch.no_grad()
def _write(model: PreTrainedModel, ids_T: Tensor, new_tokens: int) -> None:
    """Greedy decoding by hand: no stop token, no settings of the model's own, only its forward passes."""
    ids, cache = ids_T[None].to(model.device), None
    for _ in range(new_tokens):
        output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        ids, cache = output.logits[:, -1].argmax(-1, keepdim=True), output.past_key_values
