"""Continuous batching for a server: sequences arrive at any time, leave when they end, and share prefixes.

One step of :class:`ContinuousSampler` reads at most ``CHUNK`` tokens of waiting prompts, in order of arrival,
and then samples one token for every running sequence. A long prompt therefore delays the others by one chunk,
not by its whole length. The keys and values of an ended sequence stay in a slot until it is needed, and a
prompt with the same beginning (the next turn of a conversation, the same system prompt) copies the common
prefix and reads only the rest.

Not thread-safe: one thread uses a sampler.

Shapes: B running sequences, N tokens of a chunk, V vocabulary.
"""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import PreTrainedModel

from stillhouse.models.sampling.constrained import Constraint
from stillhouse.models.sampling.next_token import draw_with_logp
from stillhouse.models.sampling.open_decoder import open_decoder
from stillhouse.models.sampling.penalties import NO_PENALTIES, LogitPenalties
from stillhouse.models.types import Marker, Sampling, TokenLogprob

CHUNK = 256  # tokens of waiting prompts that one step reads
MIN_SHARED_PREFIX = 16  # tokens; a shorter common prefix is read again, which is cheaper than the copy


@dataclass(frozen=True)
class SampledToken:
    """One token that a step sampled for a sequence."""

    sequence: LiveSequence
    id: int
    logprob: TokenLogprob | None
    """None where the sequence requests none."""
    finish_reason: str | None
    """With the last token `stop` (an end token, or the constraint is fulfilled) or `length`; None before."""


@dataclass(eq=False)
class LiveSequence:
    """An unfinished answer.

    Args:
        top_logprobs: likeliest tokens to report with each sampled token; 0 reports only the sampled token's
            own log-probability, None reports nothing.
        score_prompt: also report the prompt's tokens (from the second on), in ``prompt_logprobs``. The whole
            prompt is then read, whatever prefix is known.
        constraint: restricts the answer. Log-probabilities stay those of the model without it.
        penalties: penalties and biases; log-probabilities stay those of the model without them, too.
        marker: a watermark (:class:`stillhouse.watermark.Mark`).
    """

    prompt: tuple[int, ...]
    sampling: Sampling
    top_logprobs: int | None = None
    score_prompt: bool = False
    constraint: Constraint | None = None
    penalties: LogitPenalties = NO_PENALTIES
    marker: Marker | None = None
    ids: list[int] = field(default_factory=list)
    prompt_logprobs: list[TokenLogprob] = field(default_factory=list)
    cached_tokens: int = 0
    """Tokens of the prompt that were copied instead of read."""
    cancelled: bool = False
    """Any thread can set this to abandon the answer."""
    _read: int = 0
    """Tokens of the prompt in the cache."""

    @functools.cached_property
    def prompt_ids(self) -> frozenset[int]:
        """The ids that occur in the prompt."""
        return frozenset(self.prompt)

    def __post_init__(self) -> None:
        self._uniforms = np.random.Generator(np.random.Philox(key=self.sampling.seed or 0))

    @property
    def _length(self) -> int:
        """Tokens in the cache while it runs: all but the last, which the next step reads."""
        return len(self.prompt) + len(self.ids) - 1


@dataclass(eq=False)
class _CachedPrefix:
    """The keys and values of an ended sequence, in one slot."""

    slot: int
    ids: tuple[int, ...] = ()
    last_used: int = 0


class ContinuousSampler:
    """Samples tokens for sequences of one model.

    Args:
        model: in eval mode.
        ends: ids that end an answer.
        slots: sequences that run at once.
        capacity: longest sequence in tokens, prompt and answer.
        kept: ended sequences whose prefix can be found again.
    """

    def __init__(
        self, model: PreTrainedModel, ends: set[int], *, slots: int, capacity: int, kept: int
    ) -> None:
        self.model, self.ends, self.slots, self.capacity = model, ends, slots, capacity
        with torch.inference_mode():
            trial = [number % model.config.get_text_config().vocab_size for number in range(1, 9)]
            self._decoder = open_decoder(model, slots + kept, capacity, trial)
        self._memory = self._decoder.memory
        # Prompts are read in the spare slot. A running slot is taken only when the whole prompt is there,
        # since a step reads the first B slots and must find only running sequences in them.
        self._entrance = self._memory.spare
        self._prefixes = (
            [_CachedPrefix(slots + number) for number in range(kept)] if self._decoder.shares_prefixes else []
        )
        self._running: list[LiveSequence] = []
        self._waiting: deque[LiveSequence] = deque()
        self._clock = 0

    @property
    def busy(self) -> bool:
        """Whether sequences run or wait."""
        return bool(self._running or self._waiting)

    def add(self, sequence: LiveSequence) -> None:
        """Queues a sequence. Its prompt must not be empty, and must fit the capacity with its answer."""
        assert sequence.prompt
        assert len(sequence.prompt) + sequence.sampling.max_tokens <= self.capacity
        self._waiting.append(sequence)

    def clear(self) -> None:
        """Drops all sequences and cached prefixes, for instance after an error in the middle of a step."""
        self._running.clear()
        self._waiting.clear()
        for prefix in self._prefixes:
            prefix.ids = ()

    @torch.inference_mode()
    def step(self) -> list[SampledToken]:
        """Reads waiting prompts, then samples a token for every running sequence."""
        self._leave()
        # Those that _enter adds get their first token there, from the logits of their prompt.
        older = tuple(self._running)
        sampled = self._enter()
        if older:  # they hold the first slots; new sequences follow them
            tokens_B = torch.tensor([sequence.ids[-1] for sequence in older], device=self.model.device)
            lengths_B = torch.tensor([sequence._length for sequence in older], device=self.model.device)
            sampled += self._sample(older, self._decoder.step(tokens_B, lengths_B))
        return sampled

    def _enter(self) -> list[SampledToken]:
        """Reads waiting prompts, one after the other, until a chunk is full or no slot is free."""
        sampled: list[SampledToken] = []
        budget = CHUNK
        while self._waiting and budget > 0 and len(self._running) < self.slots:
            # First come, first served: the entrance holds one prompt, which stays at the head of the queue
            # over several steps. A second prompt would overwrite its keys and values.
            sequence = self._waiting[0]
            if sequence.cancelled:
                self._waiting.popleft()
                continue
            if sequence._read == 0:
                # Not when it was queued: sequences that ended while it waited can hold a longer prefix.
                self._copy_prefix(sequence)
            # A cache that cannot be cut to a prefix cannot be relied on to take a prompt in chunks either.
            chunk = budget if self._decoder.shares_prefixes else len(sequence.prompt)
            ids = sequence.prompt[sequence._read : sequence._read + chunk]
            logits_NV = self._decoder.extend(ids, self._entrance, sequence._read, every=sequence.score_prompt)
            if sequence.score_prompt:
                # The logits after a token score the next one, so those after the last score nothing.
                targets = sequence.prompt[sequence._read + 1 : sequence._read + 1 + len(ids)]
                sequence.prompt_logprobs += _logprobs(
                    logits_NV[: len(targets)], targets, sequence.top_logprobs or 0
                )
            sequence._read += len(ids)
            budget -= len(ids)
            if sequence._read == len(sequence.prompt):
                self._waiting.popleft()
                self._memory.copy(self._entrance, [len(self._running)], len(sequence.prompt))
                self._running.append(sequence)
                # The prompt's logits give its first token; from the next step on it runs with the others.
                sampled += self._sample([sequence], logits_NV[-1:])
        return sampled

    def _copy_prefix(self, sequence: LiveSequence) -> None:
        """Copies the longest known prefix of the prompt to the entrance."""
        if sequence.score_prompt or not self._decoder.shares_prefixes:
            return  # scores need the logits after every token, and the cache holds no logits
        candidates = [(prefix.ids, prefix.slot, prefix) for prefix in self._prefixes]
        candidates += [
            ((*running.prompt, *running.ids[:-1]), slot, None) for slot, running in enumerate(self._running)
        ]
        length, slot, prefix = max(
            ((_common_prefix(sequence.prompt, ids), slot, prefix) for ids, slot, prefix in candidates),
            key=lambda candidate: candidate[0],
            default=(0, 0, None),
        )
        length = min(length, len(sequence.prompt) - 1)  # the last token is read again, for its logits
        if length >= MIN_SHARED_PREFIX:
            self._memory.copy(slot, [self._entrance], length)
            sequence._read = sequence.cached_tokens = length
            if prefix:
                prefix.last_used = self._tick()

    def _sample(self, sequences: Sequence[LiveSequence], logits_BV: torch.Tensor) -> list[SampledToken]:
        uniforms = torch.tensor([sequence._uniforms.random() for sequence in sequences], dtype=torch.float64)
        settings = [sequence.sampling for sequence in sequences]
        markers = [sequence.marker for sequence in sequences]
        answers = [sequence.ids for sequence in sequences]
        allowed_BV = _adjusted(sequences, logits_BV)
        tokens_B = draw_with_logp(allowed_BV, settings, uniforms, markers, answers)[0].tolist()
        sampled = []
        for row, (sequence, token) in enumerate(zip(sequences, tokens_B, strict=True)):
            sequence.ids.append(token)
            logprob = None
            if sequence.top_logprobs is not None:
                logprob = _logprobs(logits_BV[row : row + 1], [token], sequence.top_logprobs)[0]
            full = len(sequence.ids) >= sequence.sampling.max_tokens
            ended = token in self.ends
            if sequence.constraint and not ended:
                sequence.constraint.consume(token)
                ended = sequence.constraint.finished
            reason = "stop" if ended else "length" if full else None
            sampled.append(SampledToken(sequence, token, logprob, reason))
            if reason:
                sequence.cancelled = True
        return sampled

    def _leave(self) -> None:
        """Removes ended and cancelled sequences, keeps their keys and values, and closes the gaps."""
        # From the end, so that the sequence that moves to a free slot is never itself one that leaves.
        for slot in reversed(range(len(self._running))):
            sequence = self._running[slot]
            if not sequence.cancelled:
                continue
            self._keep_prefix(sequence, slot)
            last = self._running.pop()
            if slot < len(self._running):
                self._memory.copy(len(self._running), [slot], last._length)
                self._running[slot] = last

    def _keep_prefix(self, sequence: LiveSequence, slot: int) -> None:
        ids = (*sequence.prompt, *sequence.ids[:-1])
        if not self._prefixes or len(ids) < MIN_SHARED_PREFIX:
            return
        # A conversation that has grown replaces its own earlier turns; anything else the least recently used.
        longest = max(self._prefixes, key=lambda prefix: _common_prefix(ids, prefix.ids))
        extends = longest.ids and _common_prefix(ids, longest.ids) == len(longest.ids)
        replaced = longest if extends else min(self._prefixes, key=lambda prefix: prefix.last_used)
        self._memory.copy(slot, [replaced.slot], len(ids))
        replaced.ids, replaced.last_used = ids, self._tick()

    def _tick(self) -> int:
        self._clock += 1
        return self._clock


def _common_prefix(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    for position, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return position
    return min(len(a), len(b))


def _adjusted(sequences: Sequence[LiveSequence], logits_BV: torch.Tensor) -> torch.Tensor:
    """The logits after each sequence's penalties, with -inf for tokens that its constraint forbids."""
    if not any(sequence.constraint or sequence.penalties.active for sequence in sequences):
        return logits_BV
    # A copy in float32: log-probabilities are reported from the model's own logits, and bfloat16 would round
    # small penalties away.
    logits_BV = logits_BV.float() if logits_BV.dtype != torch.float32 else logits_BV.clone()
    for row, sequence in enumerate(sequences):
        if sequence.penalties.active:
            sequence.penalties.apply(logits_BV[row], sequence.prompt_ids, sequence.ids)
        if sequence.constraint:
            allowed_V = torch.from_numpy(sequence.constraint.allowed_tokens()).to(logits_BV.device)
            logits_BV[row].masked_fill_(~allowed_V, -torch.inf)
    return logits_BV


def _logprobs(logits_NV: torch.Tensor, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
    """The log-probability of each of N tokens under its row, with the ``top`` likeliest of the row."""
    if not tokens:
        return []
    logp_NV = logits_NV.float().log_softmax(-1)
    own = logp_NV.gather(1, torch.tensor([list(tokens)], device=logp_NV.device).T)[:, 0].tolist()
    values, ids = logp_NV.topk(top) if top else (logp_NV[:, :0], logp_NV[:, :0].long())
    return [
        TokenLogprob(token, logprob, tuple(zip(top_ids, top_logprobs, strict=True)))
        for token, logprob, top_ids, top_logprobs in zip(
            tokens, own, ids.tolist(), values.tolist(), strict=True
        )
    ]
