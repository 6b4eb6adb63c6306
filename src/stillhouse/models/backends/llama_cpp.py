"""Generation from GGUF files with llama.cpp (through xllamacpp), several requests at a time.

The chat template is rendered and tokenized here, as in training, and llama.cpp gets token ids; its
own template engine is not used. xllamacpp opens an HTTP port on 127.0.0.1 that is not used either; a key that
nobody knows closes it.
"""

from __future__ import annotations

import asyncio
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from stillhouse.errors import ContextLengthError, MissingExtraError, ModelError, StillhouseError
from stillhouse.models.backends.prompts import PromptEncoder
from stillhouse.models.chat.reasoning import split_reasoning
from stillhouse.models.chat.template import ChatTemplate
from stillhouse.models.gguf.file import GgufFile, read_gguf
from stillhouse.models.gguf.validate import validate_for_llama_cpp
from stillhouse.models.types import Capabilities, Reply, Request, Sampling

SLOTS = 8
CACHE_BYTES = 2**30  # for keys and values of all slots together
SHORTEST_CONTEXT = 2048
EMBEDDED_TOKENS = 2048  # of one text; all are read at once, which takes memory
_QUIET = -1


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
    ) -> None:
        validate_for_llama_cpp(file)
        self.reference, self.fingerprint = reference, fingerprint
        self.template_hash: str | None = template.hash
        self.context_length: int | None = slot_context(file)
        self.prompts = PromptEncoder(tokenizer, template, self.context_length, seed)
        self._cache_prompts, self._path = cache_prompts, file.path
        self._server = _start(file.path, self.context_length)
        self._embedder: Any = None
        self._reader = ThreadPoolExecutor(1, thread_name_prefix="llama.cpp embeddings")
        self._threads = ThreadPoolExecutor(SLOTS, thread_name_prefix="llama.cpp")

    async def generate(self, requests: Sequence[Request]) -> list[Reply | StillhouseError]:
        """One result for each request, in order; as many at once as there are slots."""
        loop = asyncio.get_running_loop()
        return list(
            await asyncio.gather(*(loop.run_in_executor(self._threads, self._one, r) for r in requests))
        )

    def stream(
        self,
        ids: Sequence[int],
        sampling: Sampling,
        listen: Callable[[dict[str, Any] | StillhouseError], bool],
        *,
        top_logprobs: int | None = None,
        schema: Mapping[str, Any] | None = None,
        preserved_tokens: Sequence[str] = (),
    ) -> None:
        """Begins one answer in a thread, as soon as a slot is free.

        Args:
            listen: hears each of llama.cpp's chunks (also of the prompt's progress), or the error that ends
                the answer, in that thread; returns True to end it.
            top_logprobs: how many likeliest tokens to tell with each; None tells nothing.
            schema: JSON schema that the answer must follow, checked: llama.cpp says nothing of a wrong one.
            preserved_tokens: texts that are told even where they are special tokens.
        """
        body = _body(list(ids), sampling, cache=self._cache_prompts)
        body |= {"stream": True, "return_progress": True, "preserved_tokens": list(preserved_tokens)}
        if top_logprobs is not None:
            body["n_probs"] = max(1, top_logprobs)
        if schema is not None:
            body["json_schema"] = schema
        self._threads.submit(self._stream, body, listen)

    def _stream(
        self, body: dict[str, Any], listen: Callable[[dict[str, Any] | StillhouseError], bool]
    ) -> None:
        if self._server is None or listen({}):
            return

        def hear(chunk: Any) -> bool:
            if "error" in chunk:
                return listen(ModelError(f"llama.cpp failed: {chunk['error'].get('message')}"))
            return listen(chunk)

        try:
            answer = self._server.handle_completions(body, hear)
        except Exception as error:  # whatever the compiled part throws
            listen(ModelError(f"llama.cpp failed: {error}"))
            return
        if answer and "error" in answer:
            listen(ModelError(f"llama.cpp failed: {answer['error'].get('message')}"))

    async def embed(self, ids: Sequence[int]) -> list[float]:
        """The mean of the last hidden states, made 1 long; the first one opens the file a second time.

        Raises:
            ContextLengthError: there are more than ``EMBEDDED_TOKENS``.
        """
        return await asyncio.get_running_loop().run_in_executor(self._reader, self._embed, list(ids))

    def forget_embedder(self) -> None:
        """Frees what only embeddings need, once those under way are done."""
        self._reader.submit(setattr, self, "_embedder", None)

    async def close(self) -> None:
        """Stops llama.cpp; whoever interrupted answers under way does not wait for them."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._reader.shutdown(wait=False, cancel_futures=True)
        self._server = self._embedder = None

    def _embed(self, ids: list[int]) -> list[float]:
        limit = min(self.context_length or EMBEDDED_TOKENS, EMBEDDED_TOKENS)
        if len(ids) > limit:
            raise ContextLengthError(
                f"the text has {len(ids)} tokens; llama.cpp takes {limit} for an embedding",
                hint="Cut the text into parts.",
            )
        if self._embedder is None:
            self._embedder = _start(self._path, limit, embed=True)
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
            return _refusal(request, answer["error"])
        choice, usage = answer["choices"][0], answer["usage"]
        text, reasoning = split_reasoning(choice["text"], inside=self.prompts.ends_in_reasoning(ids))
        return Reply(
            text=text,
            reasoning=reasoning,
            finish_reason=choice["finish_reason"],
            prompt_tokens=usage["prompt_tokens"],
            completion_tokens=usage["completion_tokens"],
        )


def open_llama_cpp(reference: str, *, seed: int, cache_prompts: bool = False) -> LlamaCppModel:
    """Starts llama.cpp on the GGUF file that ``reference`` names.

    Args:
        cache_prompts: read only what of a prompt differs from the one before in a slot; results then depend
            on that in their last bits.
    """
    from stillhouse.models.reference import parse_reference
    from stillhouse.models.weights import fingerprint, load_tokenizer

    parsed = parse_reference(reference)
    if not parsed.is_gguf or parsed.path is None:
        raise ModelError(
            f"llama.cpp reads GGUF files, and {reference} is none", hint="Set teacher.backend: torch."
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
    )


def slot_context(file: GgufFile) -> int:
    """Tokens that one slot holds: the model's context, or what fits when all slots share CACHE_BYTES."""
    try:
        return _slot_context(file)
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise ModelError(
            f"{file.path}: its sizes make no sense: {error}", hint="Download the file again."
        ) from error


def _slot_context(file: GgufFile) -> int:
    heads = file.architecture_field("attention.head_count_kv") or file.architecture_field(
        "attention.head_count", 1
    )
    heads = max(heads) if isinstance(heads, list) else heads
    width = file.architecture_field("attention.key_length") or (
        file.architecture_field("embedding_length", 1) // file.architecture_field("attention.head_count", 1)
    )
    bytes_per_token = (
        2 * 2 * file.architecture_field("block_count", 1) * heads * width
    )  # keys and values, float16
    native = file.architecture_field("context_length", SHORTEST_CONTEXT)
    return min(native, max(SHORTEST_CONTEXT, CACHE_BYTES // bytes_per_token // SLOTS))


def _start(path: Path, context: int, *, embed: bool = False) -> Any:
    """A llama.cpp server: for answers, as many at once as there are slots, or for one embedding at a time."""
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
        params.n_batch = params.n_ubatch = context
    if threads := wanted_threads():
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.n_ctx = context * slots
    params.verbosity = _QUIET
    params.warmup = False
    params.ui = False
    params.endpoint_slots = False
    params.cache_ram_mib = 0
    params.chat_template = "chatml"  # never used; llama.cpp would run the file's own, which may never end
    params.api_keys = [secrets.token_urlsafe(32)]
    try:
        return start_llama_server(params)
    except RuntimeError as error:
        raise ModelError(f"llama.cpp cannot load {path}: {error}", hint="Download the file again.") from error


def start_llama_server(params: Any) -> Any:
    """A started llama.cpp server whose loop runs.

    One that is let go before its loop has begun waits for ever for the loop's end, since the loop then misses
    the order to end. So it is asked something that only the loop answers.
    """
    import xllamacpp

    params.endpoint_metrics = True
    server = xllamacpp.Server(params)  # pyright: ignore[reportAttributeAccessIssue]
    server.handle_metrics()
    return server


def wanted_threads() -> int | None:
    """What ``OMP_NUM_THREADS`` asks for, as of torch; None leaves it to llama.cpp."""
    wanted = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    return int(wanted) if wanted.isdecimal() and int(wanted) else None


def _body(ids: list[int], sampling: Sampling, *, cache: bool) -> dict[str, Any]:
    """The request in llama.cpp's words; every sampler that the recipe does not know is off."""
    greedy = sampling.temperature == 0  # then one token is left before anything looks at the whole vocabulary
    return {
        "prompt": ids,
        "n_predict": sampling.max_tokens,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": 1 if greedy else sampling.top_k,
        "min_p": sampling.min_p,
        "repeat_penalty": 1.0,
        "samplers": ["top_k"] if greedy else ["temperature", "top_k", "top_p", "min_p"],
        "seed": sampling.seed,
        "stop": list(sampling.stop),
        "cache_prompt": cache,
        "stream": False,
    }


def _refusal(request: Request, error: dict[str, Any]) -> StillhouseError:
    if error.get("type") == "exceed_context_size_error":
        return ContextLengthError(f"the prompt {request.id} does not fit: {error.get('message')}")
    return ModelError(f"llama.cpp failed on {request.id}: {error.get('message')}")
