"""Sampling from a transformers model, many sequences at once, each leaving when it has ended.

What makes it faster than ``generate``: a lean forward pass for the llama family
(:mod:`.fast_decoder`), keys and values in memory laid out once, equal prompts prefilled once,
and slots that are filled again as soon as they are free. Each sequence's draws come from its own
seed, one uniform number a step, so they do not depend on who else runs (the last bits of a
bfloat16 pass may).

Models whose layers do not all attend to the whole sequence (sliding windows, state
spaces) are not sampled here; see :func:`can_sample`.

Shapes: B running sequences, P prompts, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedModel

from stillhouse.models.sampling.fast_decoder import FastDecoder, fast_decoder
from stillhouse.models.sampling.kv_cache import KeyValues
from stillhouse.models.sampling.module_decoder import ModuleDecoder
from stillhouse.models.sampling.next_token import draw, draw_with_logp
from stillhouse.models.types import Marker, Sampling

__all__ = ["SampledAnswer", "can_sample", "draw", "sample"]

SLOTS = 64  # sequences that run at once
PREFILL = 1024  # prompt tokens of one prefill pass, if there is more than one prompt; more are slower

Stopped = Callable[[int, Sequence[int]], bool]


@dataclass(frozen=True)
class SampledAnswer:
    """One answer."""

    ids: list[int]
    """Tokens, the end token included when it came."""
    finish_reason: str
    """`stop` (an end token, or ``stopped``) or `length`."""
    logp: list[float]
    """Log-probability of each token in nats: at the temperature (at 1 where that is 0), over the whole
    vocabulary, before top-k, top-p and min-p."""


@dataclass
class _Sequence:
    """One answer under way."""

    place: int
    prompt: tuple[int, ...]
    setting: Sampling
    uniforms: np.random.Generator
    marker: Marker | None = None
    ids: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    finish_reason: str | None = None

    @property
    def length(self) -> int:
        """Tokens in memory: all but the last, which the next step takes in."""
        return len(self.prompt) + len(self.ids) - 1


def can_sample(model: PreTrainedModel) -> bool:
    """Whether every layer of ``model`` attends to the whole sequence, as this sampler needs."""
    text = model.config.get_text_config()
    kinds = getattr(text, "layer_types", None) or ["full_attention"]
    return all(kind == "full_attention" for kind in kinds) and not getattr(text, "use_sliding_window", False)


@torch.inference_mode()
def sample(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    settings: Sequence[Sampling],
    *,
    ends: set[int],
    on_token: Callable[[int], None] | None = None,
    slots: int = SLOTS,
    stopped: Stopped | None = None,
    markers: Sequence[Marker | None] = (),
) -> list[SampledAnswer]:
    """Continues every prompt until an end token, a stop or its ``max_tokens``.

    Args:
        prompts: token ids, none empty. Equal prompts are prefilled once.
        settings: temperature (0 is greedy), top_p, top_k, min_p, max_tokens and seed of each prompt. Stop
            strings are the caller's, through ``stopped``: this function knows no text.
        ends: ids that end an answer.
        on_token: called after each step with the number of tokens just drawn.
        slots: sequences that run at once; the others wait for a free slot.
        stopped: called as stopped(place of the prompt, its answer's ids so far) after each token; True ends
            that answer.
        markers: a watermark for each prompt (:class:`stillhouse.watermark.Mark`), or none at all.
    """
    if not prompts:
        return []
    everyone = [
        _Sequence(
            place,
            tuple(prompt),
            setting,
            np.random.Generator(np.random.Philox(key=setting.seed or 0)),
            marker,
        )
        for place, (prompt, setting, marker) in enumerate(
            zip(prompts, settings, markers or [None] * len(prompts), strict=True)
        )
    ]
    longest = max(len(one.prompt) + one.setting.max_tokens for one in everyone)
    layers = model.config.get_text_config().num_hidden_layers
    memory = KeyValues(layers, min(slots, len(everyone)), longest)
    decoder = fast_decoder(model, memory, everyone[0].prompt) or ModuleDecoder(model, memory)
    entrance = _Entrance(everyone, decoder)
    running: list[_Sequence] = []
    while running or entrance.waiting:
        if entrance.waiting and len(running) < memory.slots:
            fresh, logits_BV = entrance.enter(len(running))
            running += fresh
        else:
            fresh = running
            tokens_B = torch.tensor([one.ids[-1] for one in running], device=model.device)
            lengths_B = torch.tensor([one.length for one in running], device=model.device)
            logits_BV = decoder.step(tokens_B, lengths_B)
        _advance(fresh, logits_BV, ends, stopped)
        if on_token:
            on_token(len(fresh))
        _leave(running, memory)
    return [SampledAnswer(one.ids, one.finish_reason or "length", one.logp) for one in everyone]


class _Entrance:
    """Lets waiting sequences in, samples of one prompt after each other, each prompt prefilled once."""

    def __init__(self, everyone: Sequence[_Sequence], decoder: FastDecoder | ModuleDecoder) -> None:
        together: dict[tuple[int, ...], deque[_Sequence]] = {}
        for one in everyone:
            together.setdefault(one.prompt, deque()).append(one)
        self.waiting = deque(together.values())
        self.decoder = decoder
        self.kept_1V: torch.Tensor | None = None
        """Logits after the first waiting prompt, while its keys and values are in the spare slot."""

    def enter(self, first: int) -> tuple[list[_Sequence], torch.Tensor]:
        """Sequences that now have the slots from ``first`` on, and the logits [B, V] after their prompts."""
        free, memory = self.decoder.memory.slots - first, self.decoder.memory
        groups, tokens = [], 0
        while self.waiting and free and (not groups or tokens + len(self.waiting[0][0].prompt) <= PREFILL):
            group = [self.waiting[0].popleft() for _ in range(min(free, len(self.waiting[0])))]
            groups.append(group)
            free -= len(group)
            tokens += len(group[0].prompt)
            if not self.waiting[0]:
                self.waiting.popleft()
        logits_PV = self._prefill(groups, first)
        entered = [one for group in groups for one in group]
        slot = first
        for group in groups:
            memory.copy(slot, range(slot + 1, slot + len(group)), len(group[0].prompt))
            slot += len(group)
        unfinished = bool(self.waiting) and self.waiting[0][0].prompt == entered[-1].prompt
        if unfinished:
            memory.copy(slot - 1, [memory.spare], len(entered[-1].prompt))
        self.kept_1V = logits_PV[-1:].clone() if unfinished else None
        counts = torch.tensor([len(group) for group in groups], device=logits_PV.device)
        return entered, logits_PV.repeat_interleave(counts, 0)

    def _prefill(self, groups: Sequence[Sequence[_Sequence]], slot: int) -> torch.Tensor:
        """Logits [P, V] after each group's prompt, whose keys and values go to the group's first slot."""
        parts, prompts, places = [], [], []
        for number, group in enumerate(groups):
            if number == 0 and self.kept_1V is not None:
                self.decoder.memory.copy(self.decoder.memory.spare, [slot], len(group[0].prompt))
                parts.append(self.kept_1V)
            else:
                prompts.append(group[0].prompt)
                places.append(slot)
            slot += len(group)
        if prompts:
            parts.append(self.decoder.prefill(prompts, places))
        return torch.cat(parts)


def _advance(
    sequences: Sequence[_Sequence], logits_BV: torch.Tensor, ends: set[int], stopped: Stopped | None
) -> None:
    """Draws one token for each and notes which have ended."""
    uniforms = torch.tensor([one.uniforms.random() for one in sequences], dtype=torch.float64)
    tokens_B, logp_B = draw_with_logp(
        logits_BV,
        [one.setting for one in sequences],
        uniforms,
        [one.marker for one in sequences],
        [one.ids for one in sequences],
    )
    for one, token, logp in zip(sequences, tokens_B.tolist(), logp_B.tolist(), strict=True):
        one.ids.append(token)
        one.logp.append(logp)
        if token in ends or (stopped and stopped(one.place, one.ids)):
            one.finish_reason = "stop"
        elif len(one.ids) >= one.setting.max_tokens:
            one.finish_reason = "length"


def _leave(running: list[_Sequence], memory: KeyValues) -> None:
    """Ended sequences go; the last ones take their slots."""
    for slot in reversed(range(len(running))):
        if running[slot].finish_reason is not None:
            last = running.pop()
            if slot < len(running):
                memory.copy(len(running), [slot], last.length)
                running[slot] = last
