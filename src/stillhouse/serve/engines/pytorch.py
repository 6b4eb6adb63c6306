"""Serves a safetensors model with the continuous-batching sampler, in a thread of its own."""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from stillhouse.console import console
from stillhouse.errors import (
    ModelError,
    OutOfMemoryError,
    StillhouseError,
    is_out_of_memory,
)
from stillhouse.serve.engines.base import GenerationRequest, TextDelta
from stillhouse.serve.engines.detokenizer import TextBuilder
from stillhouse.serve.engines.mailbox import Mailbox

if TYPE_CHECKING:
    from stillhouse.models import LiveSequence, Marker

SLOTS = 32
"""Generations of one model that run at once; more wait."""
KEPT = 8
"""Ended conversations whose keys and values are kept for the next turn."""
CACHE_BYTES = 2 * 2**30
"""For keys and values of all slots together."""
SHORTEST_CONTEXT = 1024
EMBEDDING_BATCH = 1024
"""Tokens of texts that are embedded in one pass."""


class TorchEngine:
    """A transformers model whose forward passes all run in one thread.

    The sampler is not thread-safe, and PyTorch already uses every core within a step. Coroutines therefore
    put jobs (functions without arguments) into a queue, which the thread works off between two steps.
    """

    def __init__(self, weights: Any, *, slots: int = SLOTS, marker: Marker | None = None) -> None:
        from stillhouse.models import (
            ConstraintFactory,
            ContinuousSampler,
            PromptEncoder,
            embedding_rows,
            shared_context_note,
        )

        self._model = weights.model
        kept = min(KEPT, slots)
        config, sequences = self._model.config.get_text_config().to_dict(), slots + kept + 1
        self.context_length = torch_context_length(config, self._model.dtype.itemsize, sequences)
        self.prompts = PromptEncoder(
            weights.tokenizer,
            weights.template,
            self.context_length,
            seed=0,
            rows=embedding_rows(self._model),
            context_note=shared_context_note(
                self.context_length, config["max_position_embeddings"], sequences, CACHE_BYTES
            ),
        )
        self.capabilities = frozenset({"all_penalties", "echo", "embed", "schema"})
        self._tokenizer, self._marker = weights.tokenizer, marker
        self._sampler = ContinuousSampler(
            self._model, weights.end_ids, slots=slots, capacity=self.context_length, kept=kept
        )
        # Rows of the output layer: models pad their vocabulary beyond the tokenizer's.
        vocab_size = self._model.get_output_embeddings().weight.shape[0]
        self._constraints = ConstraintFactory(weights.tokenizer, vocab_size, weights.end_ids)
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._event_queues: dict[int, asyncio.Queue[Any]] = {}
        """id() of each running sequence -> where its tokens go; only the thread touches it."""
        self._mailbox = Mailbox()
        self._thread = threading.Thread(target=self._run, name="torch", daemon=True)
        self._thread.start()

    async def generate(self, request: GenerationRequest) -> AsyncIterator[TextDelta]:
        from stillhouse.models import LiveSequence

        constraint = None
        if request.json_schema is not None:
            # A large schema takes long to compile: not in the event loop.
            constraint = await asyncio.to_thread(self._constraints.create, request.json_schema)
        events = self._mailbox.open_queue()
        sequence = LiveSequence(
            request.prompt_ids,
            request.sampling,
            top_logprobs=request.top_logprobs,
            score_prompt=request.score_prompt,
            constraint=constraint,
            penalties=request.penalties,
            marker=self._marker,
        )
        text = TextBuilder(self._tokenizer, request.sampling.stop, shown=request.preserved_tokens)
        deltas = _DeltaBuilder(sequence, text)
        self._jobs.put(lambda: self._start(sequence, events))
        try:
            while True:
                event = await events.get()
                if isinstance(event, Exception):
                    raise event
                if constraint and (failure := constraint.failure):
                    raise failure
                delta = deltas.build(event)
                yield delta
                if delta.finish_reason:
                    return
        finally:
            sequence.cancelled = True
            self._jobs.put(lambda: self._forget(sequence))

    async def check_schema(self, schema: dict[str, Any]) -> None:
        """Does nothing: a request's schema was checked by the library that follows it here."""

    def check_embeddable(self, texts: Sequence[Sequence[int]]) -> None:
        """Does nothing: any text within the context can be embedded."""

    async def embed(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """Returns the mean of each text's last hidden states, with L2 norm 1."""
        embeddings: list[list[float]] = [[] for _ in texts]
        for indices in _batches_of_equal_length(texts):
            # One at a time: generations take steps between two batches, and cancelling stops the rest.
            batch = await self._embed_batch([texts[index] for index in indices])
            for index, embedding in zip(indices, batch, strict=True):
                embeddings[index] = embedding
        return embeddings

    async def _embed_batch(self, texts: Sequence[Sequence[int]]) -> list[list[float]]:
        """The embeddings of texts with equal numbers of tokens."""
        import torch

        loop = asyncio.get_running_loop()
        result: asyncio.Future[list[list[float]]] = loop.create_future()

        def job() -> None:
            with torch.inference_mode():
                ids_BT = torch.tensor([list(ids) for ids in texts])
                states_BTE = self._model.base_model(ids_BT).last_hidden_state
                mean_BE = states_BTE.float().mean(1)
                embeddings = (mean_BE / mean_BE.norm(dim=-1, keepdim=True)).tolist()
            loop.call_soon_threadsafe(lambda: result.cancelled() or result.set_result(embeddings))

        self._jobs.put(job)
        return await result

    async def close(self) -> None:
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _run(self) -> None:
        """Runs in the thread: does jobs as they arrive, and steps while there are sequences."""
        while True:
            try:
                if not self._do_jobs():
                    return
                for drawn in self._sampler.step() if self._sampler.busy else ():
                    if (events := self._event_queues.get(id(drawn.sequence))) is not None:
                        self._mailbox.send(events, drawn)
            # Whatever torch raises: the generations in progress fail, and the server continues.
            except Exception as error:
                self._fail(error)

    def _do_jobs(self) -> bool:
        """Does all waiting jobs; blocks while the sampler is idle. False when the engine closes."""
        while True:
            try:
                job = self._jobs.get(block=not self._sampler.busy)
            except queue.Empty:
                return True
            if job is None:
                self._fail(ModelError("the model was unloaded"))
                return False
            job()

    def _start(self, sequence: LiveSequence, events: asyncio.Queue[Any]) -> None:
        if not sequence.cancelled:  # the client may have left while the job waited
            self._event_queues[id(sequence)] = events
            self._sampler.add(sequence)

    def _forget(self, sequence: LiveSequence) -> None:
        self._event_queues.pop(id(sequence), None)

    def _fail(self, error: Exception) -> None:
        if is_out_of_memory(error):
            error = OutOfMemoryError("no memory for the answers in progress", hint="Serve a smaller model.")
        elif not isinstance(error, StillhouseError):
            console.warn(f"the model failed: {type(error).__name__}: {error}")
            error = ModelError(f"the model failed: {type(error).__name__}")
        for events in self._event_queues.values():
            self._mailbox.send(events, error)
        self._event_queues.clear()
        self._sampler.clear()


def _batches_of_equal_length(texts: Sequence[Sequence[int]]) -> list[list[int]]:
    """Indices of texts that are embedded together: of equal length, so that none is padded."""
    by_length: dict[int, list[int]] = {}
    for index, ids in enumerate(texts):
        by_length.setdefault(len(ids), []).append(index)
    batches = []
    for length, indices in by_length.items():
        size = max(1, EMBEDDING_BATCH // length)
        batches += [indices[start : start + size] for start in range(0, len(indices), size)]
    return batches


class _DeltaBuilder:
    """Turns the sampled tokens of one sequence into text deltas."""

    def __init__(self, sequence: LiveSequence, text: TextBuilder) -> None:
        self._sequence, self._text = sequence, text
        self._is_first = True

    def build(self, drawn: Any) -> TextDelta:
        """Returns the delta of one sampled token."""
        is_first, self._is_first = self._is_first, False
        text, finish_reason = self._text.add(drawn.id, drawn.finish_reason)
        return TextDelta(
            text,
            tokens=1,
            logprobs=(drawn.logprob,) if drawn.logprob else (),
            prompt_logprobs=tuple(self._sequence.prompt_logprobs) if is_first else (),
            cached_tokens=self._sequence.cached_tokens if is_first else 0,
            finish_reason=finish_reason,
            stop_sequence=self._text.stop_sequence,
        )


def torch_context_length(config: Mapping[str, Any], bytes_per_number: int, sequences: int) -> int:
    """Tokens of one sequence: the model's context, or what fits when all share ``CACHE_BYTES``.

    Args:
        config: transformers' configuration of the text model.
        sequences: that share the memory.
    """
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    bytes_per_token = 2 * config["num_hidden_layers"] * kv_heads * head_dim * bytes_per_number
    fitting_tokens = CACHE_BYTES // (bytes_per_token * sequences)
    return min(config["max_position_embeddings"], max(SHORTEST_CONTEXT, fitting_tokens))
