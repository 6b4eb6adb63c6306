"""Generation from GGUF files with llama.cpp (through xllamacpp), several requests at a time.

Prompts are rendered and tokenized here, as in training, and llama.cpp gets token ids; its own template engine
is not used. Neither is the HTTP port that xllamacpp opens on 127.0.0.1: a random key locks it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from stillhouse.errors import ContextLengthError, MissingExtraError, ModelError, StillhouseError
from stillhouse.models.backends.prompts import PromptEncoder, shared_context_note
from stillhouse.models.chat.reasoning import split_reasoning
from stillhouse.models.chat.template import ChatTemplate
from stillhouse.models.gguf.file import GgufFile, read_gguf
from stillhouse.models.gguf.validate import validate_for_llama_cpp
from stillhouse.models.sampling.constrained import with_one_line_options
from stillhouse.models.sampling.penalties import NO_PENALTIES, LogitPenalties
from stillhouse.models.types import Capabilities, Reply, Request, Sampling

SLOTS = 8
CACHE_BYTES = 2**30  # for the keys and values of all slots together
MIN_CONTEXT = 2048
MAX_EMBEDDING_TOKENS = 2048  # of one text; one batch reads them all, which takes memory
_QUIET = -1

Chunk = dict[str, Any]
"""A chunk of llama.cpp's stream."""


class LlamaCppModel:
    """A llama.cpp server inside this process."""

    can = Capabilities(generate=True, logprobs=False, train=False)
    max_batch = 1
    concurrency = SLOTS
    pushbacks = 0

    def __init__(
        self,
        reference: str,
        file: GgufFile,
        tokenizer: Any,
        template: ChatTemplate,
        fingerprint: str,
        *,
        seed: int,
        cache_prompts: bool = False,
        variables: Mapping[str, Any] | None = None,
    ) -> None:
        validate_for_llama_cpp(file)
        self.reference, self.fingerprint = reference, fingerprint
        self.template_hash: str | None = template.hash
        context = slot_context(file)
        self.context_length: int | None = context
        note = shared_context_note(context, _native_context(file), SLOTS, CACHE_BYTES)
        self.prompts = PromptEncoder(tokenizer, template, context, seed, variables, context_note=note)
        self._cache_prompts, self._path = cache_prompts, file.path
        self._server = _start(file.path, context)
        self._embedder: Any = None
        self._embedding_thread = ThreadPoolExecutor(1, thread_name_prefix="llama.cpp embeddings")
        self._threads = ThreadPoolExecutor(SLOTS, thread_name_prefix="llama.cpp")

    async def generate(self, requests: Sequence[Request]) -> list[Reply | StillhouseError]:
        """One result for each request, in order. As many run at once as there are slots."""
        loop = asyncio.get_running_loop()
        return list(
            await asyncio.gather(*(loop.run_in_executor(self._threads, self._one, r) for r in requests))
        )

    def stream(
        self,
        ids: Sequence[int],
        sampling: Sampling,
        on_chunk: Callable[[Chunk | StillhouseError], bool],
        *,
        top_logprobs: int | None = None,
        schema: Mapping[str, Any] | None = None,
        penalties: LogitPenalties = NO_PENALTIES,
        preserved_tokens: Sequence[str] = (),
    ) -> None:
        """Starts one answer in a thread, as soon as a slot is free.

        Args:
            on_chunk: called in that thread with each of llama.cpp's chunks (also those of the prompt's
                progress), or with the error that ends the answer; returns True to stop it.
            top_logprobs: how many likeliest tokens to tell with each; None tells nothing.
            schema: JSON schema that the answer must follow. llama.cpp ignores one that it cannot follow:
                :meth:`follows` asks it.
            penalties: presence penalties do not apply to tokens that are in the prompt, because llama.cpp
                counts the prompt, too; a repetition penalty excludes the other two.
            preserved_tokens: special tokens that stay in the text.
        """
        body = _body(list(ids), sampling, cache=self._cache_prompts)
        body |= {"stream": True, "return_progress": True, "preserved_tokens": list(preserved_tokens)}
        body["timings_per_token"] = True  # with the number of tokens so far
        if penalties.active:
            body |= _penalty_fields(penalties, ids, body["samplers"], window=self.context_length or 2**20)
        if top_logprobs is not None:
            body["n_probs"] = max(1, top_logprobs)
        if schema is not None:
            body["json_schema"] = with_one_line_options(schema)
        self._threads.submit(self._stream, body, on_chunk)

    def follows(self, schema: Mapping[str, Any]) -> bool:
        """Whether llama.cpp follows a JSON schema. Waits for a free slot, and blocks.

        It drops a schema that its llguidance cannot compile, without an error. So this generates one token,
        with a bias to a letter that no JSON begins with: only a grammar keeps the letter out.
        """
        if self._server is None:
            return False
        letter = self.prompts.tokenizer.encode("Z", add_special_tokens=False)[-1]
        answer = self._server.handle_completions({
            **_body([letter], Sampling(temperature=0, max_tokens=1), cache=False),
            "json_schema": with_one_line_options(schema),
            "logit_bias": [[letter, 1000.0]],
        })  # fmt: skip
        return "error" not in answer and "Z" not in answer["choices"][0]["text"]

    def next_token_logprobs(self, ids: Sequence[int], count: int) -> list[tuple[int, float]]:
        """The ``count`` likeliest tokens after ``ids`` and their log-probabilities. Blocks."""
        if self._server is None:
            return []
        # llama.cpp reports nothing with a token that ends inside a character: generate one that does not.
        letter = self.prompts.tokenizer.encode("Z", add_special_tokens=False)[-1]
        answer = self._server.handle_completions({
            **_body(list(ids), Sampling(temperature=0, max_tokens=1), cache=True),
            "n_probs": count,
            "logit_bias": [[letter, 1000.0]],
        })  # fmt: skip
        if "error" in answer:
            raise ModelError(f"llama.cpp failed: {answer['error'].get('message')}")
        (token,) = answer["choices"][0]["logprobs"]["content"]
        return [(top["id"], top["logprob"]) for top in token["top_logprobs"]]

    def _stream(self, body: dict[str, Any], on_chunk: Callable[[Chunk | StillhouseError], bool]) -> None:
        # The empty chunk asks whether the answer is still wanted: it can have waited long for a free thread.
        if self._server is None or on_chunk({}):
            return

        def forward(chunk: Any) -> bool:
            if "error" in chunk:
                return on_chunk(ModelError(f"llama.cpp failed: {chunk['error'].get('message')}"))
            return on_chunk(chunk)

        try:
            answer = self._server.handle_completions(body, forward)
        except Exception as error:  # the compiled module can raise anything
            on_chunk(ModelError(f"llama.cpp failed: {error}"))
            return
        # An error comes as a chunk or as the return value.
        if answer and "error" in answer:
            on_chunk(ModelError(f"llama.cpp failed: {answer['error'].get('message')}"))

    async def embed(self, ids: Sequence[int]) -> list[float]:
        """The mean of the last hidden states, normalised to length 1.

        The first call opens the file a second time: a llama.cpp server either generates or embeds.

        Raises:
            ContextLengthError: the text has more than ``MAX_EMBEDDING_TOKENS``.
        """
        return await asyncio.get_running_loop().run_in_executor(
            self._embedding_thread, self._embed, list(ids)
        )

    def unload_embedder(self) -> None:
        """Frees the memory of the embedding server, after embeddings in progress."""
        self._embedding_thread.submit(setattr, self, "_embedder", None)

    async def close(self) -> None:
        """Stops llama.cpp. Does not wait for answers in progress, so that an interrupt ends at once."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._embedding_thread.shutdown(wait=False, cancel_futures=True)
        self._server = self._embedder = None

    def check_embeddable(self, ids: Sequence[int]) -> None:
        """Raises ContextLengthError if a text has more tokens than can be embedded."""
        if len(ids) > self._embedding_limit:
            raise ContextLengthError(
                f"the text has {len(ids)} tokens; llama.cpp embeds at most {self._embedding_limit}",
                hint="Split the text.",
            )

    @property
    def _embedding_limit(self) -> int:
        return min(self.context_length or MAX_EMBEDDING_TOKENS, MAX_EMBEDDING_TOKENS)

    def _embed(self, ids: list[int]) -> list[float]:
        self.check_embeddable(ids)
        if self._embedder is None:
            self._embedder = _start(self._path, self._embedding_limit, embed=True)
        answer = self._embedder.handle_embeddings({"input": [ids]})
        if "error" in answer:
            raise ModelError(f"llama.cpp failed: {answer['error'].get('message')}")
        return answer["data"][0]["embedding"]

    def _one(self, request: Request) -> Reply | StillhouseError:
        ids = self.prompts.encode(request)
        if isinstance(ids, StillhouseError):
            return ids
        assert self._server is not None, "generate() after close()"
        sampling = self.prompts.resolve_sampling(request, len(ids))
        answer = self._server.handle_completions(_body(ids, sampling, cache=self._cache_prompts))
        if "error" in answer:
            return _reply_error(request, answer["error"])
        choice, usage = answer["choices"][0], answer["usage"]
        text, reasoning = split_reasoning(choice["text"], inside=self.prompts.ends_in_reasoning(ids))
        return Reply(
            text=text,
            reasoning=reasoning,
            finish_reason=choice["finish_reason"],
            prompt_tokens=usage["prompt_tokens"],
            completion_tokens=usage["completion_tokens"],
        )


def open_llama_cpp(
    reference: str, *, seed: int, cache_prompts: bool = False, variables: Mapping[str, Any] | None = None
) -> LlamaCppModel:
    """Starts llama.cpp with the GGUF file that ``reference`` names.

    Args:
        cache_prompts: reuse the common prefix with the prompt before in a slot. The last bits of results then
            depend on that prompt.
        variables: for the chat template.
    """
    from stillhouse.models.reference import parse_reference
    from stillhouse.models.weights import fingerprint, load_tokenizer

    parsed = parse_reference(reference)
    if not parsed.is_gguf or parsed.path is None:
        raise ModelError(
            f"llama.cpp reads GGUF files only, and {reference} is not one", hint="Set teacher.backend: torch."
        )
    tokenizer, template = load_tokenizer(reference)
    return LlamaCppModel(
        parsed.text,
        read_gguf(parsed.path),
        tokenizer,
        template,
        fingerprint(parsed, parsed.path),
        seed=seed,
        cache_prompts=cache_prompts,
        variables=variables,
    )


def slot_context(file: GgufFile) -> int:
    """Tokens of one slot: the model's context, or what fits when all slots share CACHE_BYTES."""
    try:
        return _slot_context(file)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(
            f"{file.path}: the sizes in its header are invalid: {error}", hint="Download the file again."
        ) from error


def _slot_context(file: GgufFile) -> int:
    heads = file.architecture_field("attention.head_count_kv") or file.architecture_field(
        "attention.head_count", 1
    )
    heads = max(heads) if isinstance(heads, list) else heads
    width = file.architecture_field("attention.key_length") or (
        file.architecture_field("embedding_length", 1) // file.architecture_field("attention.head_count", 1)
    )
    # Keys and values, two bytes each (float16).
    bytes_per_token = 2 * 2 * file.architecture_field("block_count", 1) * heads * width
    return min(_native_context(file), max(MIN_CONTEXT, CACHE_BYTES // bytes_per_token // SLOTS))


def _native_context(file: GgufFile) -> int:
    """Tokens of the model's own context, as far as llama.cpp computes it right."""
    native = file.architecture_field("context_length", MIN_CONTEXT)
    if "rope_factors_long.weight" in file.tensors:
        # LongRoPE has other factors beyond the original context. llama.cpp chooses once, by the context that
        # it is started with, so a longer one would compute short conversations with the factors of long ones.
        native = min(native, file.architecture_field("rope.scaling.original_context_length", native))
    return native


def _start(path: Path, context: int, *, embed: bool = False) -> Any:
    """A llama.cpp server: for as many answers at once as there are slots, or for one embedding at a time."""
    try:
        import xllamacpp
    except ImportError as error:
        raise MissingExtraError(
            "generating from GGUF files with llama.cpp needs xllamacpp",
            hint="pip install 'stillhouse[gguf]', or set teacher.backend: torch.",
        ) from error
    params = xllamacpp.CommonParams()  # pyright: ignore[reportAttributeAccessIssue]  (compiled)
    params.model.path = str(path)
    params.n_parallel = slots = 1 if embed else SLOTS
    if embed:
        params.embedding = True
        params.pooling_type = xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_MEAN  # pyright: ignore[reportAttributeAccessIssue]
        params.n_batch = params.n_ubatch = context  # pooling needs all tokens of a text in one batch
    if threads := requested_threads():
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_ctx = context * slots  # llama.cpp divides it by the number of slots
    params.verbosity = _QUIET
    params.warmup = False
    params.ui = False
    params.endpoint_slots = False
    params.cache_ram_mib = 0  # no copies of old prompts in memory, which take up to 8 GiB by default
    # Never used, but llama.cpp would otherwise run the file's own template, which may never return.
    params.chat_template = "chatml"
    params.api_keys = [secrets.token_urlsafe(32)]
    try:
        return start_llama_server(params)
    except RuntimeError as error:
        raise ModelError(f"llama.cpp cannot load {path}: {error}", hint="Download the file again.") from error


def start_llama_server(params: Any) -> Any:
    """Starts a llama.cpp server and waits until its loop runs.

    A server that is freed before its loop runs hangs: the loop misses the signal to stop, and the destructor
    waits for the loop. So request the metrics, which only the running loop answers.
    """
    import xllamacpp

    params.endpoint_metrics = True
    server = xllamacpp.Server(params)  # pyright: ignore[reportAttributeAccessIssue]
    server.handle_metrics()
    return server


def requested_threads() -> int | None:
    """``OMP_NUM_THREADS``, which also limits torch; None leaves the number to llama.cpp."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(wanted) if wanted.isdecimal() and int(wanted) else None


def _body(ids: list[int], sampling: Sampling, *, cache: bool) -> dict[str, Any]:
    """The request for llama.cpp. Samplers without a field in :class:`Sampling` are off."""
    # Greedy needs top-k only, which leaves one token before any sampler sorts the whole vocabulary.
    greedy = sampling.temperature == 0
    return {
        "prompt": ids,
        "n_predict": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": 1 if greedy else sampling.top_k,
        "min_p": sampling.min_p,
        "repeat_penalty": 1.0,
        # The order that `Sampling` promises; llama.cpp's default applies the temperature last.
        "samplers": ["top_k"] if greedy else ["temperature", "top_k", "top_p", "min_p"],
        "seed": sampling.seed,
        "stop": list(sampling.stop),
        "cache_prompt": cache,
        "stream": False,
    }


def _penalty_fields(
    penalties: LogitPenalties, prompt_ids: Sequence[int], samplers: Sequence[str], *, window: int
) -> dict[str, Any]:
    """The fields of a request that apply penalties and biases.

    Args:
        window: last tokens that penalties count; the whole context.
    """
    bias = dict(penalties.bias)
    # llama.cpp counts the tokens of the prompt, too: add to their logits what it will subtract.
    for token, count in Counter(prompt_ids).items():
        bias[token] = bias.get(token, 0.0) + penalties.presence + penalties.frequency * count
    return {
        "samplers": ["penalties", *samplers],
        "repeat_last_n": window,
        "repeat_penalty": penalties.repetition,
        "presence_penalty": penalties.presence,
        "frequency_penalty": penalties.frequency,
        "logit_bias": [[token, value] for token, value in bias.items() if value],
    }


def _reply_error(request: Request, error: dict[str, Any]) -> StillhouseError:
    if error.get("type") == "exceed_context_size_error":
        return ContextLengthError(f"the prompt {request.id} does not fit: {error.get('message')}")
    return ModelError(f"llama.cpp failed on {request.id}: {error.get('message')}")
