"""Tokens per second of several models, measured in turn within one process.

The models take turns, round by round, so that other load on the machine affects all of
them; the result is the median of the rounds with the slowest and the fastest. These are
speeds of transformers at batch size 1 in the data type of the loaded weights: they
compare the models on this machine and predict nothing for another machine or server.
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
        """The entry of ``report.json``."""
        return asdict(self)


@dataclass(frozen=True)
class Speeds:
    """Speed of generation (one token at a time) and of scoring (one pass over a text)."""

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
    """Speeds of ``models`` at batch size 1, after a short warm-up round.

    Args:
        models: at least one; the result has the same keys.
        ids_T: [T] token ids of a text, valid for all models. Scoring reads all T; generation
            continues the text greedily by exactly ``new_tokens``, and its time includes the prefill.
        clock: returns seconds.
        on_round: called after each round, the warm-up round included.
    """
    generate_rates: dict[str, list[float]] = {name: [] for name in models}
    score_rates: dict[str, list[float]] = {name: [] for name in models}
    for round_number in range(rounds + 1):
        length = new_tokens if round_number else min(WARM_UP_TOKENS, new_tokens)
        for name, model in models.items():
            generate_rate = length / _seconds(lambda m=model, n=length: _generate(m, ids_T, n), model, clock)
            score_rate = len(ids_T) / _seconds(lambda m=model: _score(m, ids_T), model, clock)
            if round_number:
                generate_rates[name].append(generate_rate)
                score_rates[name].append(score_rate)
        on_round()
    return {name: Speeds(_summary(generate_rates[name]), _summary(score_rates[name])) for name in models}


def _summary(rates: list[float]) -> Speed:
    return Speed(statistics.median(rates), min(rates), max(rates))


def _seconds(work: Callable[[], None], model: PreTrainedModel, clock: Callable[[], float]) -> float:
    _synchronize(model)
    started = clock()
    work()
    _synchronize(model)
    return clock() - started


def _synchronize(model: PreTrainedModel) -> None:
    """Waits for the GPU's queue; otherwise the clock measures only the time to enqueue the work."""
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


@torch.no_grad()
def _score(model: PreTrainedModel, ids_T: Tensor) -> None:
    model(input_ids=ids_T[None].to(model.device), use_cache=False)


@torch.no_grad()
def _generate(model: PreTrainedModel, ids_T: Tensor, new_tokens: int) -> None:
    """Greedy decoding with forward passes alone: no stop token, no generation settings of the model."""
    ids, cache = ids_T[None].to(model.device), None
    for _ in range(new_tokens):
        # the last logits alone, as in any decoder: those of the whole prompt would cost more than the step
        output = model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        ids, cache = output.logits[:, -1].argmax(-1, keepdim=True), output.past_key_values
