"""Sampling for a server: sequences come at any time, leave when they end, and find their prefix again.

One step of :class:`ContinuousSampler` takes in at most ``CHUNK`` tokens of prompts that are waiting, in the
order in which they came, and then draws one token for everyone who runs. So a long prompt delays the others
by a chunk and not by itself. When a sequence ends, its keys and values stay in a slot for as long as there is
room, and a prompt that begins like it (the next turn of a conversation, the same system prompt) takes over
what is equal and reads only the rest.

Not for several threads: whoever has a sampler gives it to one.

Shapes: B running sequences, N tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedModel

from stillhouse.models.sampling.constrained import Constraint
from stillhouse.models.sampling.fast_decoder import fast_decoder
from stillhouse.models.sampling.kv_cache import KeyValues
from stillhouse.models.sampling.module_decoder import ModuleDecoder
from stillhouse.models.sampling.next_token import draw_with_logp
from stillhouse.models.types import Marker, Sampling

CHUNK = 256  # tokens of waiting prompts that one step takes in
WORTH_COPYING = 16  # tokens of an equal prefix that are copied rather than read again


@dataclass(frozen=True)
class TokenLogprob:
    """What the model thought of one token: natural logarithms over the whole vocabulary, at temperature 1."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The likeliest tokens and theirs, the likeliest first."""


@dataclass(frozen=True)
class SampledToken:
    """One token that a step drew for a sequence."""

    sequence: LiveSequence
    id: int
    logprob: TokenLogprob | None
    """None where the sequence did not ask."""
    finish_reason: str | None
    """`stop` (an end token, or the constraint is fulfilled) or `length` with the last token; None before."""


@dataclass(eq=False)
class LiveSequence:
    """One answer under way.

    Args:
        top_logprobs: likeliest tokens to report with each sampled token; 0 reports only the sampled token's
            own log-probability, None reports nothing.
        score_prompt: also tell those of the prompt's tokens (from the second on), in ``prompt_logprobs``. A
            prefix is then read again.
        constraint: what the answer must follow. Scores stay those of the model without it.
        marker: a watermark (:class:`stillhouse.watermark.Mark`).
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    top_logprobs: int | None = None
    score_prompt: bool = False
    constraint: Constraint | None = None
    marker: Marker | None = None
    ids: list[int] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    cached_tokens: int = 0
    """Tokens of the prompt that were there already."""
    cancelled: bool = False
    """Set by whoever no longer wants the answer, from any thread."""
    _read: int = 0

    def __post_init__(self) -> None:
        self._uniforms = np.random.Generator(np.random.Philox(key=self.sampling.seed or 0))

    @property
    def _length(self) -> int:
        """Tokens in memory while it runs: all but the last, which the next step takes in."""
        return len(self.prompt) + len(self.ids) - 1


@dataclass(eq=False)
class _Memory:
    """Keys and values that a sequence left behind, in one slot."""

    slot: int
    ids: tuple[int, ...] = ()
    used: int = 0


class ContinuousSampler:
    """Draws tokens for sequences of one model.

    Args:
        model: in eval mode; every layer attends to the whole sequence
            (:func:`~stillhouse.models.sampling.batch.can_sample`).
        ends: ids that end an answer.
        slots: sequences that run at once.
        capacity: tokens that one sequence may have, prompt and answer.
        kept: ended sequences whose prefix may be found again.
    """

    def __init__(
        self, model: PreTrainedModel, ends: set[int], *, slots: int, capacity: int, kept: int
    ) -> None:
        self.model, self.ends, self.slots, self.capacity = model, ends, slots, capacity
        layers = model.config.get_text_config().num_hidden_layers
        self._memory = KeyValues(layers, slots + kept, capacity)
        self._entrance = self._memory.spare
        with torch.inference_mode():
            trial = [number % model.config.get_text_config().vocab_size for number in range(1, 9)]
            self._decoder = fast_decoder(model, self._memory, trial) or ModuleDecoder(model, self._memory)
        self._kept = [_Memory(slots + number) for number in range(kept)]
        self._running: list[LiveSequence] = []
        self._waiting: deque[LiveSequence] = deque()
        self._clock = 0

    @property
    def busy(self) -> bool:
        """Whether there is anything to do."""
        return bool(self._running or self._waiting)

    def add(self, sequence: LiveSequence) -> None:
        """Lets a sequence wait for its turn; its prompt is not empty and fits with its answer."""
        assert sequence.prompt
        assert len(sequence.prompt) + sequence.sampling.max_tokens <= self.capacity
        self._waiting.append(sequence)

    def clear(self) -> None:
        """Forgets every sequence and all that is kept, as after a failure in mid-step."""
        self._running.clear()
        self._waiting.clear()
        for memory in self._kept:
            memory.ids = ()

    @torch.inference_mode()
    def step(self) -> list[SampledToken]:
        """Takes in waiting prompts, then draws a token for everyone who runs."""
        self._leave()
        older = tuple(self._running)
        drawn = self._enter()
        if older:  # in front of those that have just come
            tokens_B = torch.tensor([one.ids[-1] for one in older], device=self.model.device)
            lengths_B = torch.tensor([one._length for one in older], device=self.model.device)
            drawn += self._draw(older, self._decoder.step(tokens_B, lengths_B))
        return drawn

    def _enter(self) -> list[SampledToken]:
        """Reads waiting prompts, one after the other, until a chunk is full or no slot is free."""
        drawn: list[SampledToken] = []
        room = CHUNK
        while self._waiting and room > 0 and len(self._running) < self.slots:
            one = self._waiting[0]
            if one.cancelled:
                self._waiting.popleft()
                continue
            if one._read == 0:
                self._find_prefix(one)
            ids = one.prompt[one._read : one._read + room]
            logits_NV = self._decoder.extend(ids, self._entrance, one._read, every=one.score_prompt)
            if one.score_prompt:
                targets = one.prompt[one._read + 1 : one._read + 1 + len(ids)]
                one.prompt_logprobs += _scores(logits_NV[: len(targets)], targets, one.top_logprobs or 0)
            one._read += len(ids)
            room -= len(ids)
            if one._read == len(one.prompt):
                self._waiting.popleft()
                self._memory.copy(self._entrance, [len(self._running)], len(one.prompt))
                self._running.append(one)
                drawn += self._draw([one], logits_NV[-1:])
        return drawn

    def _find_prefix(self, one: LiveSequence) -> None:
        """Copies the longest known beginning of the prompt to the entrance."""
        if one.score_prompt:
            return
        known = [(memory.ids, memory.slot, memory) for memory in self._kept]
        known += [((*run.prompt, *run.ids[:-1]), slot, None) for slot, run in enumerate(self._running)]
        length, slot, memory = max(
            ((_common(one.prompt, ids), slot, memory) for ids, slot, memory in known),
            key=lambda found: found[0],
            default=(0, 0, None),
        )
        length = min(length, len(one.prompt) - 1)  # the last token is read again, for its logits
        if length >= WORTH_COPYING:
            self._memory.copy(slot, [self._entrance], length)
            one._read = one.cached_tokens = length
            if memory:
                memory.used = self._tick()

    def _draw(self, sequences: Sequence[LiveSequence], logits_BV: torch.Tensor) -> list[SampledToken]:
        uniforms = torch.tensor([one._uniforms.random() for one in sequences], dtype=torch.float64)
        settings, markers = [one.sampling for one in sequences], [one.marker for one in sequences]
        answers = [one.ids for one in sequences]
        allowed_BV = _allowed(sequences, logits_BV)
        tokens_B = draw_with_logp(allowed_BV, settings, uniforms, markers, answers)[0].tolist()
        drawn = []
        for row, (one, token) in enumerate(zip(sequences, tokens_B, strict=True)):
            one.ids.append(token)
            score = None
            if one.top_logprobs is not None:
                score = _scores(logits_BV[row : row + 1], [token], one.top_logprobs)[0]
            full = len(one.ids) >= one.sampling.max_tokens
            ended = token in self.ends
            if one.constraint and not ended:
                one.constraint.consume(token)
                ended = one.constraint.finished
            reason = "stop" if ended else "length" if full else None
            drawn.append(SampledToken(one, token, score, reason))
            if reason:
                one.cancelled = True
        return drawn

    def _leave(self) -> None:
        """Ended and unwanted sequences go, their keys and values are kept; the last ones take their slots."""
        for slot in reversed(range(len(self._running))):
            one = self._running[slot]
            if not one.cancelled:
                continue
            self._keep(one, slot)
            last = self._running.pop()
            if slot < len(self._running):
                self._memory.copy(len(self._running), [slot], last._length)
                self._running[slot] = last

    def _keep(self, one: LiveSequence, slot: int) -> None:
        ids = (*one.prompt, *one.ids[:-1])
        if not self._kept or len(ids) < WORTH_COPYING:
            return
        longest = max(self._kept, key=lambda memory: _common(ids, memory.ids))
        grown = longest.ids and _common(ids, longest.ids) == len(longest.ids)
        place = longest if grown else min(self._kept, key=lambda memory: memory.used)
        self._memory.copy(slot, [place.slot], len(ids))
        place.ids, place.used = ids, self._tick()

    def _tick(self) -> int:
        self._clock += 1
        return self._clock


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Tokens that both begin with."""
    for place, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return place
    return min(len(a), len(b))


def _allowed(sequences: Sequence[LiveSequence], logits_BV: torch.Tensor) -> torch.Tensor:
    """The logits, with -inf for what a sequence's constraint forbids; rows without one as they are."""
    rows = [(row, one.constraint) for row, one in enumerate(sequences) if one.constraint]
    if not rows:
        return logits_BV
    logits_BV = logits_BV.clone()
    for row, constraint in rows:
        allowed_V = torch.from_numpy(constraint.allowed_tokens()).to(logits_BV.device)
        logits_BV[row].masked_fill_(~allowed_V, -torch.inf)
    return logits_BV


def _scores(logits_NV: torch.Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
    """The log-probability of each of N tokens under its row, with the ``top`` likeliest of the row."""
    if not tokens:
        return []
    logp_NV = logits_NV.float().log_softmax(-1)
    own = logp_NV.gather(1, torch.tensor([list(tokens)], device=logp_NV.device).T)[:, 0].tolist()
    values, ids = logp_NV.topk(top) if top else (logp_NV[:, :0], logp_NV[:, :0].long())
    return [
        TokenLogprob(token, value, tuple(zip(few, chances, strict=True)))
        for token, value, few, chances in zip(tokens, own, ids.tolist(), values.tolist(), strict=True)
    ]
