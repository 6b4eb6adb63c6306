"""Generation with torch and transformers, many requests at a time.

Weights are bfloat16 where the CPU multiplies it, else float32. Where all layers attend to the whole sequence,
an answer depends on its request's seed and not on the rest of the batch. Other models (sliding windows) use
transformers' generate, one request at a time, since it has one random generator for a whole batch.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stillhouse.errors import CapabilityError, OutOfMemoryError, StillhouseError, is_out_of_memory
from stillhouse.models.backends.prompts import PromptEncoder, cut_at_stop, has_stop
from stillhouse.models.chat.reasoning import split_reasoning
from stillhouse.models.cpu import cpu_has_bfloat16
from stillhouse.models.types import Capabilities, Marker, Reply, Request, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from stillhouse.models.sampling.batch import SampledAnswer
    from stillhouse.models.weights import Weights

MAX_BATCH = 64


class TorchModel:
    """A transformers model."""

    max_batch = MAX_BATCH
    concurrency = 1
    pushbacks = 0

    def __init__(self, weights: Weights, *, seed: int) -> None:
        from stillhouse.models.sampling.batch import can_sample

        self.reference, self.fingerprint = weights.reference, weights.fingerprint
        self.template_hash: str | None = weights.template.hash
        self.context_length = getattr(weights.model.config, "max_position_embeddings", None)
        self._model, self._tokenizer = weights.model, weights.tokenizer
        self.can = Capabilities(
            generate=True, logprobs=False, train=True, watermark=can_sample(weights.model)
        )
        self._prompts = PromptEncoder(weights.tokenizer, weights.template, self.context_length, seed)
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
        settings = [prompt.sampling for prompt in batch]
        try:
            return sample_any(
                self._model,
                [prompt.ids for prompt in batch],
                settings,
                ends=self._ends,
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
        text = str(self._tokenizer.decode(answer.ids, skip_special_tokens=True))
        text, stopped = cut_at_stop(text, prompt.sampling.stop)
        text, reasoning = split_reasoning(text, inside=self._prompts.ends_in_reasoning(prompt.ids))
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


def open_torch(reference: str, *, seed: int) -> TorchModel:
    """Loads ``reference`` for generation."""
    from stillhouse.models.weights import load_weights

    return TorchModel(
        load_weights(reference, dtype="bfloat16" if cpu_has_bfloat16() else "float32"), seed=seed
    )


def sample_any(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    settings: Sequence[Sampling],
    *,
    ends: set[int],
    stopped: Callable[[int, Sequence[int]], bool] | None = None,
    markers: Sequence[Marker | None] = (),
) -> list[SampledAnswer]:
    """Samples with :func:`.batch.sample`, or with transformers' generate where it does not support the model.

    generate takes one prompt at a time and ignores ``stopped``, so callers with stop strings must cut the
    text.

    Raises:
        CapabilityError: a watermark is requested from a model that is not supported.
    """
    from stillhouse.models.sampling.batch import can_sample, sample

    if can_sample(model):
        return sample(model, prompts, settings, ends=ends, slots=MAX_BATCH, stopped=stopped, markers=markers)
    if any(markers):
        raise CapabilityError("models with sliding-window layers cannot be watermarked here")
    return [
        _generate_one(model, list(ids), setting, ends) for ids, setting in zip(prompts, settings, strict=True)
    ]


def _generate_one(model: PreTrainedModel, ids: list[int], setting: Sampling, ends: set[int]) -> SampledAnswer:
    import torch
    from transformers import GenerationConfig

    from stillhouse.models.sampling.batch import SampledAnswer

    processors = {"temperature": setting.temperature, "top_k": setting.top_k, "top_p": setting.top_p}
    if setting.min_p:
        processors["min_p"] = setting.min_p
    config = GenerationConfig(
        max_new_tokens=setting.max_tokens,
        do_sample=setting.temperature > 0,
        eos_token_id=sorted(ends) or None,
        pad_token_id=min(ends, default=0),
        return_dict_in_generate=True,
        output_logits=True,
        **(processors if setting.temperature > 0 else {}),
    )
    ids_1T = torch.tensor([ids], device=model.device)
    # generate samples from the global generator, whose state must not change for the caller.
    with torch.inference_mode(), torch.random.fork_rng():
        torch.manual_seed(setting.seed or 0)
        output: Any = model.generate(
            input_ids=ids_1T, attention_mask=torch.ones_like(ids_1T), generation_config=config
        )  # pyright: ignore
    new = output.sequences[0, len(ids) :].tolist()
    logp = [
        (logits_1V[0].float() / (setting.temperature or 1.0)).log_softmax(-1)[token].item()
        for token, logits_1V in zip(new, output.logits, strict=True)
    ]
    return SampledAnswer(new, "stop" if new and new[-1] in ends else "length", logp)
