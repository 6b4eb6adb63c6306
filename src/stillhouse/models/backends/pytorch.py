"""Generation with torch and transformers, many requests at a time.

bfloat16 where the processor multiplies it. A draw depends on its request's own seed, not on who
else is in the batch, for models whose layers all attend to the whole sequence; the others
(sliding windows) go through transformers' generate, which has one generator for a batch.
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
    """A transformers model that answers."""

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
        """One result for each request, in order; an answer that ends makes room for the next."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._generate, requests)

    async def close(self) -> None:
        """Frees the weights; whoever interrupted a batch under way does not wait for it."""
        self._thread.shutdown(wait=False, cancel_futures=True)
        del self._model

    def _generate(self, requests: Sequence[Request]) -> list[Reply | StillhouseError]:
        results: list[Reply | StillhouseError | None] = [None] * len(requests)
        jobs = []
        for place, request in enumerate(requests):
            ids = self._prompts.encode(request)
            if isinstance(ids, StillhouseError):
                results[place] = ids
            else:
                sampling = self._prompts.resolve_sampling(request, len(ids))
                jobs.append(_EncodedRequest(place, ids, sampling, request.marker))
        for job, sampled in zip(jobs, self._sample(jobs), strict=True):
            results[job.place] = self._reply(job, sampled)
        assert all(result is not None for result in results)
        return [result for result in results if result is not None]

    def _sample(self, batch: list[_EncodedRequest]) -> list[SampledAnswer]:
        settings = [job.sampling for job in batch]
        try:
            return sample_any(
                self._model,
                [job.ids for job in batch],
                settings,
                ends=self._ends,
                stopped=lambda place, ids: has_stop(self._tokenizer, ids, settings[place].stop),
                markers=[job.marker for job in batch],
            )
        except (MemoryError, RuntimeError) as error:
            if is_out_of_memory(error):
                raise OutOfMemoryError(
                    f"no memory for {min(len(batch), self.max_batch)} answers at once",
                    hint="Lower collect.concurrency or collect.max_tokens.",
                ) from error
            raise

    def _reply(self, job: _EncodedRequest, sampled: SampledAnswer) -> Reply:
        text = str(self._tokenizer.decode(sampled.ids, skip_special_tokens=True))
        text, stopped = cut_at_stop(text, job.sampling.stop)
        text, reasoning = split_reasoning(text, inside=self._prompts.ends_in_reasoning(job.ids))
        return Reply(
            text=text,
            reasoning=reasoning,
            finish_reason="stop" if stopped else sampled.finish_reason,
            prompt_tokens=len(job.ids),
            completion_tokens=len(sampled.ids),
        )


@dataclass(frozen=True)
class _EncodedRequest:
    place: int
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
    """`sampler.sample`, or for models that it does not know transformers' generate, one prompt at a time.

    The latter does not ask ``stopped``: whoever has stops cuts the text.
    """
    from stillhouse.models.sampling.batch import can_sample, sample

    if can_sample(model):
        return sample(model, prompts, settings, ends=ends, slots=MAX_BATCH, stopped=stopped, markers=markers)
    if any(markers):
        raise CapabilityError("its layers look at a window only, and such a model cannot be watermarked here")
    return [
        _generate_one(model, list(ids), setting, ends) for ids, setting in zip(prompts, settings, strict=True)
    ]


def _generate_one(model: PreTrainedModel, ids: list[int], setting: Sampling, ends: set[int]) -> SampledAnswer:
    import torch
    from transformers import GenerationConfig

    from stillhouse.models.sampling.batch import SampledAnswer

    heat = {"temperature": setting.temperature, "top_k": setting.top_k, "top_p": setting.top_p}
    if setting.min_p:
        heat["min_p"] = setting.min_p
    config = GenerationConfig(
        max_new_tokens=setting.max_tokens,
        do_sample=setting.temperature > 0,
        eos_token_id=sorted(ends) or None,
        pad_token_id=min(ends, default=0),
        return_dict_in_generate=True,
        output_logits=True,
        **(heat if setting.temperature > 0 else {}),
    )
    ids_1T = torch.tensor([ids], device=model.device)
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
