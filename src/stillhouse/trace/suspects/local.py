"""A suspect whose weights are on this machine: transformers directories, hub names, GGUF files."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from stillhouse.errors import StillhouseError
from stillhouse.models import Reply, Request, Sampling, TorchModel, cpu_has_bfloat16, load_weights, sample
from stillhouse.models.chat.encode import added_tokens, encode_segment
from stillhouse.trace.suspects.base import Prompt, SuspectCapabilities, TextLikelihood
from stillhouse.trace.suspects.prefix_scoring import PrefixScorer

_PRECEDING_TEXT = "x"  # any text: the encoded one follows its prompt and does not start a document
_BYTE_FALLBACK = "<0x01>"


class TorchSuspect:
    """A transformers model in memory; GGUF weights are de-quantised."""

    can = SuspectCapabilities(generate=True, logprobs=True, weights=True)

    def __init__(self, reference: str, *, seed: int = 0) -> None:
        from stillhouse.distill.training.environment import choose_device

        weights = load_weights(reference, dtype="bfloat16" if cpu_has_bfloat16() else "float32")
        weights.model.to(choose_device("auto"))  # pyright: ignore[reportArgumentType]
        self.reference, self.fingerprint = weights.reference, weights.fingerprint
        self.weights, self.parameters = weights, weights.model.num_parameters()
        self.context_length: int | None = getattr(weights.model.config, "max_position_embeddings", None)
        self._seed = seed
        self._scorer = PrefixScorer(weights.model)

    def loglik(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[TextLikelihood | None]:
        """The log-likelihood of each text, cut at the model's context length."""
        ids_of_prompt: dict[int, tuple[int, ...]] = {}
        jobs = []
        for prompt, text_ids in zip(prompts, self._text_ids(texts), strict=True):
            if id(prompt) not in ids_of_prompt:  # an output and its resamples share one prompt object
                ids_of_prompt[id(prompt)] = tuple(self._prompt_ids(prompt))
            prompt_ids = ids_of_prompt[id(prompt)]
            left = None if self.context_length is None else max(0, self.context_length - len(prompt_ids))
            jobs.append((prompt_ids, tuple(text_ids[:left])))
        return [
            TextLikelihood(len(logps), float(logps.sum(dtype="float64")), logps) if len(logps) else None
            for logps in self._scorer.token_logps(jobs)
        ]

    def continuations(
        self, prompts: Sequence[Prompt], beginnings: Sequence[str], lengths: Sequence[int]
    ) -> list[str | None]:
        """Greedy continuations; None if the context is full."""
        continuations: list[str | None] = [None] * len(prompts)
        indices, inputs, settings = [], [], []
        beginning_ids = self._text_ids(beginnings)
        for index, (prompt, ids, length) in enumerate(zip(prompts, beginning_ids, lengths, strict=True)):
            input_ids = [*self._prompt_ids(prompt), *ids]
            left = (
                length if self.context_length is None else min(length, self.context_length - len(input_ids))
            )
            if input_ids and left > 0:
                indices.append(index)
                inputs.append(input_ids)
                settings.append(Sampling(temperature=0.0, max_tokens=left))
        answers = sample(self.weights.model, inputs, settings, ends=self.weights.end_ids)
        for index, answer in zip(indices, answers, strict=True):
            text = self.weights.tokenizer.decode(answer.ids, skip_special_tokens=True)
            continuations[index] = str(text)
        return continuations

    def generate(self, requests: Sequence[Request]) -> list[Reply | StillhouseError]:
        """Answers through the chat template."""
        return asyncio.run(TorchModel(self.weights, seed=self._seed).generate(requests))

    def affords(self, texts: Sequence[str]) -> bool:
        """Always True: there is no budget for models on this machine."""
        return True

    def close(self) -> None:
        """Frees the weights."""
        del self.weights, self._scorer

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        """Ids before the text: those of the conversation, or the begin token if the tokenizer has one."""
        tokenizer = self.weights.tokenizer
        if prompt:
            return self.weights.template.encode_prompt(tokenizer, prompt)
        begin = tokenizer.bos_token_id
        return [begin] if isinstance(begin, int) else []

    def _text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts that follow a prompt, many at a time."""
        tokenizer = self.weights.tokenizer
        # A SentencePiece tokenizer (it has byte fallback) would put a space before a text on its own.
        if tokenizer.backend_tokenizer.token_to_id(_BYTE_FALLBACK) is not None:
            special = list(added_tokens(tokenizer))
            return [encode_segment(tokenizer, text, _PRECEDING_TEXT, special) for text in texts]
        encodings = tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]
