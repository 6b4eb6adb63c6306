"""Samples many sequences at once from a transformers model; a sequence leaves the batch when it ends.

It is faster than ``generate`` through a lean forward pass for the llama family (:mod:`.fast_decoder`), a
key-value cache that is allocated once, one prefill for equal prompts, and slots that are filled again as soon
as they are free. Each sequence samples from its own seed, with one uniform number for each token, so its
tokens do not depend on the rest of the batch (the last bits of a bfloat16 pass can). Models that cannot
share a pass (recurrent layers) take one sequence at a time; see :mod:`.open_decoder`.

Shapes: B running sequences, P prompts, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedModel

from stillhouse.models.sampling.next_token import draw, draw_with_logp
from stillhouse.models.sampling.open_decoder import Decoder, open_decoder
from stillhouse.models.types import Marker, Sampling

__all__ = ["SampledAnswer", "draw", "sample"]

SLOTS = 64  # sequences that run at once
PREFILL = 1024  # prompt tokens of one prefill pass with more than one prompt; longer passes are slower

Stopped = Callable[[int, Sequence[int]], bool]


@dataclass(frozen=True)
class SampledAnswer:
    """One answer."""

    ids: list[int]
    """Tokens, including the end token if there was one."""
    finish_reason: str
    """`stop` (an end token, or ``stopped``) or `length`."""
    logp: list[float]
    """Log-probability of each token in nats: at the temperature (at 1 where that is 0), over the whole
    vocabulary, before top-k, top-p and min-p."""


@dataclass
class _Sequence:
    """An unfinished answer."""

    index: int
    """Of its prompt among all prompts."""
    prompt: tuple[int, ...]
    setting: Sampling
    uniforms: np.random.Generator
    marker: Marker | None = None
    ids: list[int] = field(default_factory=list)
    logp: list[float] = field(default_factory=list)
    finish_reason: str | None = None

    @property
    def length(self) -> int:
        """Tokens in the cache: all but the last, which the next step reads."""
        return len(self.prompt) + len(self.ids) - 1


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
            strings are the caller's, through ``stopped``: this function decodes no text.
        ends: ids that end an answer.
        on_token: called after each step with the number of tokens that it sampled.
        slots: sequences that run at once; the others wait for a free slot.
        stopped: called as stopped(index of the prompt, its answer's ids so far) after each token; True ends
            that answer.
        markers: a watermark or None for each prompt (:class:`stillhouse.watermark.Mark`), or an empty
            sequence.
    """
    if not prompts:
        return []
    sequences = [
        _Sequence(
            index,
            tuple(prompt),
            setting,
            np.random.Generator(np.random.Philox(key=setting.seed or 0)),
            marker,
        )
        for index, (prompt, setting, marker) in enumerate(
            zip(prompts, settings, markers or [None] * len(prompts), strict=True)
        )
    ]
    longest = max(len(sequence.prompt) + sequence.setting.max_tokens for sequence in sequences)
    decoder = open_decoder(model, min(slots, len(sequences)), longest, sequences[0].prompt)
    queue = _PromptQueue(sequences, decoder)
    running: list[_Sequence] = []
    while running or queue.waiting:
        # Fill free slots before the next step, so that steps run with as full a batch as possible.
        if queue.waiting and len(running) < decoder.memory.slots:
            advanced, logits_BV = queue.prefill(len(running))
            running += advanced
        else:
            advanced = running
            tokens_B = torch.tensor([sequence.ids[-1] for sequence in running], device=model.device)
            lengths_B = torch.tensor([sequence.length for sequence in running], device=model.device)
            logits_BV = decoder.step(tokens_B, lengths_B)
        _sample_tokens(advanced, logits_BV, ends, stopped)
        if on_token:
            on_token(len(advanced))
        _remove_finished(running, decoder)
    return [
        SampledAnswer(sequence.ids, sequence.finish_reason or "length", sequence.logp)
        for sequence in sequences
    ]


class _PromptQueue:
    """Sequences that wait for a slot, grouped by prompt, so that each prompt is prefilled once."""

    def __init__(self, sequences: Sequence[_Sequence], decoder: Decoder) -> None:
        by_prompt: dict[tuple[int, ...], deque[_Sequence]] = {}
        for sequence in sequences:
            by_prompt.setdefault(sequence.prompt, deque()).append(sequence)
        self.waiting = deque(by_prompt.values())
        self.decoder = decoder
        self.kept_1V: torch.Tensor | None = None
        """Logits after the first waiting prompt, while its keys and values are in the spare slot."""

    def prefill(self, first: int) -> tuple[list[_Sequence], torch.Tensor]:
        """Fills the slots from ``first`` on.

        Returns:
            Their sequences, and the logits [B, V] after their prompts.
        """
        free, memory = self.decoder.memory.slots - first, self.decoder.memory
        groups, tokens = [], 0
        while self.waiting and free and (not groups or tokens + len(self.waiting[0][0].prompt) <= PREFILL):
            group = [self.waiting[0].popleft() for _ in range(min(free, len(self.waiting[0])))]
            groups.append(group)
            free -= len(group)
            tokens += len(group[0].prompt)
            if not self.waiting[0]:
                self.waiting.popleft()
        logits_PV = self._logits(groups, first)
        entered = [sequence for group in groups for sequence in group]
        slot = first
        for group in groups:
            memory.copy(slot, range(slot + 1, slot + len(group)), len(group[0].prompt))
            slot += len(group)
        # The samples of the last prompt that found no slot will start from the spare slot.
        unfinished = bool(self.waiting) and self.waiting[0][0].prompt == entered[-1].prompt
        if unfinished:
            memory.copy(slot - 1, [memory.spare], len(entered[-1].prompt))
        self.kept_1V = logits_PV[-1:].clone() if unfinished else None
        counts = torch.tensor([len(group) for group in groups], device=logits_PV.device)
        return entered, logits_PV.repeat_interleave(counts, 0)

    def _logits(self, groups: Sequence[Sequence[_Sequence]], slot: int) -> torch.Tensor:
        """Logits [P, V] after each group's prompt; its keys and values go to the group's first slot."""
        logits, prompts, slots = [], [], []
        for number, group in enumerate(groups):
            if number == 0 and self.kept_1V is not None:
                self.decoder.memory.copy(self.decoder.memory.spare, [slot], len(group[0].prompt))
                logits.append(self.kept_1V)
            else:
                prompts.append(group[0].prompt)
                slots.append(slot)
            slot += len(group)
        if prompts:
            logits.append(self.decoder.prefill(prompts, slots))
        return torch.cat(logits)


def _sample_tokens(
    sequences: Sequence[_Sequence], logits_BV: torch.Tensor, ends: set[int], stopped: Stopped | None
) -> None:
    """Samples one token for each sequence and sets the finish reason of those that end."""
    uniforms = torch.tensor([sequence.uniforms.random() for sequence in sequences], dtype=torch.float64)
    tokens_B, logp_B = draw_with_logp(
        logits_BV,
        [sequence.setting for sequence in sequences],
        uniforms,
        [sequence.marker for sequence in sequences],
        [sequence.ids for sequence in sequences],
    )
    for sequence, token, logp in zip(sequences, tokens_B.tolist(), logp_B.tolist(), strict=True):
        sequence.ids.append(token)
        sequence.logp.append(logp)
        if token in ends or (stopped and stopped(sequence.index, sequence.ids)):
            sequence.finish_reason = "stop"
        elif len(sequence.ids) >= sequence.setting.max_tokens:
            sequence.finish_reason = "length"


def _remove_finished(running: list[_Sequence], decoder: Decoder) -> None:
    """Removes finished sequences; the last running one moves to the slot of each."""
    # From the end, so that the sequence that moves is never itself a finished one.
    for slot in reversed(range(len(running))):
        if running[slot].finish_reason is not None:
            last = running.pop()
            if slot < len(running):
                decoder.memory.copy(len(running), [slot], last.length)
                running[slot] = last
