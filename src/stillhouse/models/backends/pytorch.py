"""Generation with torch and transformers, many requests at a time.

Weights are bfloat16 where the CPU multiplies it, else float32. An answer depends on its request's seed and
not on the rest of the batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stillhouse.errors import OutOfMemoryError, StillhouseError, is_out_of_memory
from stillhouse.models.architecture.embedding_rows import embedding_rows
from stillhouse.models.backends.prompts import PromptEncoder, has_stop
from stillhouse.models.sampling.cpu import cpu_has_bfloat16
from stillhouse.models.types import Capabilities, Marker, Reply, Request, Sampling

if TYPE_CHECKING:
    from stillhouse.models.sampling.batch import SampledAnswer
    from stillhouse.models.weights import Weights

MAX_BATCH = 64


class TorchModel:
    """A transformers model."""

    max_batch = MAX_BATCH
    concurrency = 1
    pushbacks = 0

    def __init__(self, weights: Weights, *, seed: int, variables: Mapping[str, Any] | None = None) -> None:
        self.reference, self.fingerprint = weights.reference, weights.fingerprint
        self.template_hash: str | None = weights.template.hash
        self.context_length = getattr(weights.model.config, "max_position_embeddings", None)
        self._model, self._tokenizer = weights.model, weights.tokenizer
        self.can = Capabilities(generate=True, logprobs=False, train=True, watermark=True)
        self._prompts = PromptEncoder(
            weights.tokenizer,
            weights.template,
            self.context_length,
            seed,
            variables,
            rows=embedding_rows(weights.model),
        )
        self._ends = weights.end_ids
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="torch")

    async def generate(self, requests: Sequence[Request]) -> list[Reply | StillhouseError]:
        """One result for each request, in order. As an answer ends, the next request takes its slot."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._generate, requests)

    async def close(self) -> None:
        """Frees the weights. Does not wait for a batch in progress, so that an interrupt ends at once."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        del self._model

    def _generate(self, requests: Sequence[Request]) -> list[Reply | StillhouseError]:
        results: list[Reply | StillhouseError | None] = [None] * len(requests)
        prompts = []
        for index, request in enumerate(requests):
            ids = self._prompts.encode(request)
            if isinstance(ids, StillhouseError):
                results[index] = ids
            else:
                sampling = self._prompts.resolve_sampling(request, len(ids))
                prompts.append(_EncodedRequest(index, ids, sampling, request.marker))
        for prompt, answer in zip(prompts, self._sample(prompts), strict=True):
            results[prompt.index] = self._reply(prompt, answer)
        assert all(result is not None for result in results)
        return [result for result in results if result is not None]

    def _sample(self, batch: list[_EncodedRequest]) -> list[SampledAnswer]:
        from stillhouse.models.sampling.batch import sample

        settings = [prompt.sampling for prompt in batch]
        try:
            return sample(
                self._model,
                [prompt.ids for prompt in batch],
                settings,
                ends=self._ends,
                slots=MAX_BATCH,
                stopped=lambda index, ids: has_stop(self._tokenizer, ids, settings[index].stop),
                markers=[prompt.marker for prompt in batch],
            )
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise OutOfMemoryError(
                    f"not enough memory for {min(len(batch), self.max_batch)} answers at once",
                    hint="Lower collect.concurrency or collect.max_tokens.",
                ) from error
            raise

    def _reply(self, prompt: _EncodedRequest, answer: SampledAnswer) -> Reply:
        text, reasoning, stopped = self._prompts.read_answer(prompt.ids, answer.ids, prompt.sampling.stop)
        return Reply(
            text=text,
            reasoning=reasoning,
            finish_reason="stop" if stopped else answer.finish_reason,
            prompt_tokens=len(prompt.ids),
            completion_tokens=len(answer.ids),
        )


@dataclass(frozen=True)
class _EncodedRequest:
    index: int
    """Of the request among those of the call."""
    ids: list[int]
    sampling: Sampling
    marker: Marker | None


def open_torch(reference: str, *, seed: int, variables: Mapping[str, Any] | None = None) -> TorchModel:
    """Loads ``reference`` for generation; ``variables`` are the chat template's."""
    from stillhouse.models.weights import load_weights

    weights = load_weights(reference, dtype="bfloat16" if cpu_has_bfloat16() else "float32")
    return TorchModel(weights, seed=seed, variables=variables)
