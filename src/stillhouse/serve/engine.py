"""What answers behind the server: one interface over the sampler for weights and over llama.cpp.

An engine takes token ids and gives text piece by piece. Whoever stops listening to
:meth:`Engine.generate` (a client that went away) frees its place: before the first piece, between two, or
while it waits.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from stillhouse.console import console
from stillhouse.errors import (
    CapabilityError,
    ModelError,
    OutOfMemoryError,
    StillhouseError,
    is_out_of_memory,
)
from stillhouse.serve.detokenizer import Detokenizer, Stops

if TYPE_CHECKING:
    from stillhouse.models import LiveSequence, Marker, PromptEncoder, Sampling, TokenLogprob

SLOTS = 32
"""Answers of one safetensors model under way at once; more wait."""
KEPT = 8
"""Ended conversations whose keys and values are kept for the next turn."""
CACHE_BYTES = 2 * 2**30
"""For keys and values of all of them together."""
SHORTEST_CONTEXT = 1024
ROUND_S = 0.04
"""Between two deliveries of tokens to the event loop: 25 times a second is fluent to a reader."""
EMBEDDER_IDLE_S = 300
"""After so long without an embedding a GGUF model frees what only embeddings need."""


@dataclass(frozen=True)
class Piece:
    """Some more of one answer."""

    text: str = ""
    """May be empty in the middle of a character or of what may become a stop."""
    tokens: int = 0
    """Tokens that it took."""
    scores: tuple[TokenLogprob, ...] = ()
    """Of these tokens, where they were asked for; of the prompt's with the first piece, before any of it."""
    prompt_scores: tuple[TokenLogprob, ...] = ()
    cached_tokens: int = 0
    """Of the prompt, with the first piece."""
    finish_reason: str | None = None
    """`stop` or `length` with the last piece."""


@dataclass(frozen=True)
class Wish:
    """One answer that is wanted."""

    ids: tuple[int, ...]
    sampling: Sampling
    scores: int | None = None
    """How many likeliest tokens to tell with each; 0 its own log-probability only, None nothing."""
    score_prompt: bool = False
    schema: dict[str, Any] | None = None
    """The JSON schema that the answer must follow, from :func:`~stillhouse.models.with_guidance_options`."""
    marks: tuple[str, ...] = ()
    """Texts that are told even where the tokenizer has them as special tokens."""


CAPABILITIES = {
    "echo": "log-probabilities of a prompt; serve its safetensors directory",
    "embed": "embeddings",
    "schema": "answers by a JSON schema",
    "tools": "tools: its chat template knows none, or writes calls in a form that is not read here",
}
"""What not every engine can do -> what it is called where one cannot."""


class Engine(Protocol):
    """One model that is ready to answer."""

    prompts: PromptEncoder
    context_length: int
    can: frozenset[str]
    """Of the keys of :data:`CAPABILITIES`."""

    def generate(self, wish: Wish) -> AsyncIterator[Piece]:
        """The answer, piece by piece; ended by closing the iterator."""
        ...

    async def embed(self, ids: Sequence[int]) -> list[float]:
        """One text as a vector of length 1."""
        ...

    async def close(self) -> None:
        """Frees memory; answers under way end with an error."""
        ...


def open_engine(reference: str, marker: Marker | None = None) -> Engine:
    """Loads what ``reference`` names; takes seconds to minutes.

    Args:
        marker: a watermark for every answer; not for GGUF, which llama.cpp samples.

    Raises:
        StillhouseError: as :func:`stillhouse.models.load_weights`.
    """
    from stillhouse.models import (
        IsolatedTemplate,
        cpu_has_bfloat16,
        load_weights,
        open_llama_cpp,
        parse_reference,
    )

    parsed = parse_reference(reference)
    if parsed.is_gguf:
        assert marker is None
        model = open_llama_cpp(reference, seed=0, cache_prompts=True)
        model.prompts.template = IsolatedTemplate.of(model.prompts.template)
        return LlamaEngine(model)
    weights = load_weights(reference, dtype="bfloat16" if cpu_has_bfloat16() else "float32")
    weights.template = IsolatedTemplate.of(weights.template)
    return TorchEngine(weights, marker=marker)


class _Post:
    """Brings what threads say to queues of the event loop: at once, and again after ``ROUND_S`` or later.

    Whatever runs here takes a core from the threads that compute, so the loop is not woken for every token.
    """

    def __init__(self) -> None:
        self._letters: deque[tuple[asyncio.Queue[Any], Any]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._called = False
        """Whether somebody will look for letters, now or at the end of a round."""

    def queue(self) -> asyncio.Queue[Any]:
        """A queue of the loop that runs; a post serves one loop."""
        self._loop = asyncio.get_running_loop()
        return asyncio.Queue()

    def send(self, to: asyncio.Queue[Any], letter: Any) -> None:
        """From any thread."""
        assert self._loop is not None
        self._letters.append((to, letter))
        if not self._called:
            self._called = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        if not self._letters:
            self._called = False
            if not self._letters:  # else one came in between, and whoever sent it took us for called
                return
            self._called = True
        while self._letters:
            to, letter = self._letters.popleft()
            to.put_nowait(letter)
        assert self._loop is not None
        self._loop.call_later(ROUND_S, self._deliver)


class TorchEngine:
    """A transformers model in a thread of its own."""

    def __init__(self, weights: Any, *, slots: int = SLOTS, marker: Marker | None = None) -> None:
        from stillhouse.models import ConstraintFactory, ContinuousSampler, PromptEncoder, can_sample

        self._model = weights.model
        if not can_sample(self._model):
            raise CapabilityError(
                f"{weights.reference}: its layers look at a window only, which the server cannot do in torch",
                hint="`still export` it to GGUF and serve that file.",
            )
        self.context_length = _capacity(self._model, slots + KEPT + 1)
        self.prompts = PromptEncoder(weights.tokenizer, weights.template, self.context_length, seed=0)
        self.can = frozenset({"echo", "embed", "schema", *_tools(self.prompts)})
        self._tokenizer, self._marker = weights.tokenizer, marker
        self._sampler = ContinuousSampler(
            self._model, weights.end_ids, slots=slots, capacity=self.context_length, kept=KEPT
        )
        width = self._model.get_output_embeddings().weight.shape[0]
        self._constraints = ConstraintFactory(weights.tokenizer, width, weights.end_ids)
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._listeners: dict[int, asyncio.Queue[Any]] = {}
        self._post = _Post()
        self._thread = threading.Thread(target=self._work, name="torch", daemon=True)
        self._thread.start()

    async def generate(self, wish: Wish) -> AsyncIterator[Piece]:
        from stillhouse.models import LiveSequence

        constraint = (
            None if wish.schema is None else await asyncio.to_thread(self._constraints.create, wish.schema)
        )
        heard = self._post.queue()
        sequence = LiveSequence(
            wish.ids,
            wish.sampling,
            top_logprobs=wish.scores,
            score_prompt=wish.score_prompt,
            constraint=constraint,
            marker=self._marker,
        )

        def start() -> None:
            if not sequence.cancelled:
                self._listeners[id(sequence)] = heard
                self._sampler.add(sequence)

        text, stops = Detokenizer(self._tokenizer, shown=wish.marks), Stops(wish.sampling.stop)
        self._jobs.put(start)
        first = True
        try:
            while True:
                event = await heard.get()
                if isinstance(event, Exception):
                    raise event
                if constraint and (failure := constraint.failure):
                    raise failure
                said = stops.add(text.add(event.id))
                reason = "stop" if stops.stopped else event.finish_reason
                if reason and not stops.stopped:
                    said += stops.add(text.end()) + stops.end()
                yield Piece(
                    said,
                    tokens=1,
                    scores=(event.logprob,) if event.logprob else (),
                    prompt_scores=tuple(sequence.prompt_logprobs) if first else (),
                    cached_tokens=sequence.cached_tokens if first else 0,
                    finish_reason=reason,
                )
                first = False
                if reason:
                    return
        finally:
            sequence.cancelled = True
            self._jobs.put(lambda: self._forget(sequence))

    async def embed(self, ids: Sequence[int]) -> list[float]:
        """The mean of the last hidden states, made 1 long."""
        import torch

        done: asyncio.Future[list[float]] = asyncio.get_running_loop().create_future()
        loop = asyncio.get_running_loop()

        def work() -> None:
            with torch.inference_mode():
                states_1TE = self._model.base_model(torch.tensor([list(ids)])).last_hidden_state
                mean_E = states_1TE[0].float().mean(0)
                found = (mean_E / mean_E.norm()).tolist()
            loop.call_soon_threadsafe(lambda: done.cancelled() or done.set_result(found))

        self._jobs.put(work)
        return await done

    async def close(self) -> None:
        self._jobs.put(None)
        await asyncio.to_thread(self._thread.join)

    def _work(self) -> None:
        """The thread: does jobs as they come, and steps while there are sequences."""
        while True:
            try:
                if not self._do_jobs():
                    return
                for drawn in self._sampler.step() if self._sampler.busy else ():
                    if (heard := self._listeners.get(id(drawn.sequence))) is not None:
                        self._post.send(heard, drawn)
            except Exception as error:  # whatever torch says: the answers under way fail, the server goes on
                self._fail(error)

    def _do_jobs(self) -> bool:
        """Waits for a job where nothing else is to be done; False when it is time to end."""
        while True:
            try:
                job = self._jobs.get(block=not self._sampler.busy)
            except queue.Empty:
                return True
            if job is None:
                self._fail(ModelError("the model was unloaded"))
                return False
            job()

    def _forget(self, sequence: LiveSequence) -> None:
        self._listeners.pop(id(sequence), None)

    def _fail(self, error: Exception) -> None:
        if is_out_of_memory(error):
            error = OutOfMemoryError("no memory for the answers under way", hint="Serve a smaller model.")
        elif not isinstance(error, StillhouseError):
            console.warn(f"the model failed: {type(error).__name__}: {error}")
            error = ModelError(f"the model failed: {type(error).__name__}")
        for heard in self._listeners.values():
            self._post.send(heard, error)
        self._listeners.clear()
        self._sampler.clear()


class LlamaEngine:
    """A GGUF file in llama.cpp, which lets sequences in and out itself; a thread for each that runs."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self.prompts: PromptEncoder = model.prompts
        self.can = frozenset({"embed", "schema", *_tools(self.prompts)})
        self._forgetting: asyncio.TimerHandle | None = None
        self.context_length: int = model.context_length
        self._post = _Post()

    async def generate(self, wish: Wish) -> AsyncIterator[Piece]:
        heard = self._post.queue()
        gone = threading.Event()

        def listener(event: Any) -> bool:
            """Tells the loop what llama.cpp says; True makes it end."""
            if not gone.is_set() and (told := _llama_told(event)):
                self._post.send(heard, told)
            return gone.is_set()

        self._model.stream(
            wish.ids,
            wish.sampling,
            listener,
            top_logprobs=wish.scores,
            schema=wish.schema,
            preserved_tokens=wish.marks,
        )
        try:
            while True:
                told = [await heard.get()]
                while not heard.empty():
                    told.append(heard.get_nowait())
                if pieces := [one for one in told if isinstance(one, Piece)]:
                    piece = _joined(pieces)
                    yield piece
                    if piece.finish_reason:
                        return
                if isinstance(told[-1], Exception):
                    raise told[-1]
        finally:
            gone.set()

    async def embed(self, ids: Sequence[int]) -> list[float]:
        """The mean of the last hidden states, made 1 long."""
        self._keep_embedder()
        return await self._model.embed(ids)

    async def close(self) -> None:
        if self._forgetting:
            self._forgetting.cancel()
        await self._model.close()

    def _keep_embedder(self) -> None:
        if self._forgetting:
            self._forgetting.cancel()
        loop = asyncio.get_running_loop()
        self._forgetting = loop.call_later(EMBEDDER_IDLE_S, self._model.forget_embedder)


def _tools(prompts: PromptEncoder) -> set[str]:
    return {"tools"} if prompts.template.tool_call_format else set()


def _joined(pieces: Sequence[Piece]) -> Piece:
    """Pieces of one answer that came together."""
    if len(pieces) == 1:
        return pieces[0]
    return Piece(
        "".join(piece.text for piece in pieces),
        tokens=sum(piece.tokens for piece in pieces),
        scores=tuple(score for piece in pieces for score in piece.scores),
        cached_tokens=pieces[0].cached_tokens,
        finish_reason=pieces[-1].finish_reason,
    )


def _llama_told(chunk: dict[str, Any] | StillhouseError) -> Piece | StillhouseError | None:
    """A chunk of llama.cpp's; None where it says nothing of the answer (how far the prompt is read)."""
    if isinstance(chunk, StillhouseError):
        return chunk
    if not chunk.get("choices") or "prompt_progress" in chunk:
        return None
    choice = chunk["choices"][0]
    told = (choice.get("logprobs") or {}).get("content")
    reason = choice.get("finish_reason")
    details = chunk.get("usage", {}).get("prompt_tokens_details", {})
    return Piece(
        choice["text"],
        tokens=0 if reason else 1,
        scores=_llama_scores(told) if told else (),
        cached_tokens=details.get("cached_tokens", 0),
        finish_reason=reason,
    )


def _llama_scores(told: Sequence[dict[str, Any]]) -> tuple[TokenLogprob, ...]:
    from stillhouse.models import TokenLogprob

    return tuple(
        TokenLogprob(
            item["id"],
            item["logprob"],
            tuple((top["id"], top["logprob"]) for top in item.get("top_logprobs") or ()),
        )
        for item in told
    )


def _capacity(model: Any, sequences: int) -> int:
    """Tokens of one sequence: the model's context, or what fits when all share ``CACHE_BYTES``."""
    config = model.config.get_text_config()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    a_token = 2 * config.num_hidden_layers * heads * width * model.dtype.itemsize
    fits = CACHE_BYTES // (a_token * sequences)
    return min(config.max_position_embeddings, max(SHORTEST_CONTEXT, fits))
