"""A suspect whose weights are on this machine: transformers directories, hub names, GGUF files."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from stillhouse.errors import StillhouseError
from stillhouse.models import Reply, Request, Sampling, TorchModel, cpu_has_bfloat16, load_weights
from stillhouse.models.backends.pytorch import sample_any
from stillhouse.models.chat.encode import added_tokens, encode_segment
from stillhouse.trace.suspects.base import Prompt, SuspectCapabilities, TextLikelihood
from stillhouse.trace.suspects.prefix_scoring import PrefixScorer

_ANYTHING = "x"  # a text stands after its prompt, not at the start of a document
_BYTE_FALLBACK = "<0x01>"


class TorchSuspect:
    """A transformers model in memory; GGUF weights are de-quantised."""

    can = SuspectCapabilities(generate=True, logprobs=True, weights=True)

    def __init__(self, reference: str, *, seed: int = 0) -> None:
        from stillhouse.distill.training.runtime import choose_device

        weights = load_weights(reference, dtype="bfloat16" if cpu_has_bfloat16() else "float32")
        weights.model.to(choose_device("auto"))  # pyright: ignore[reportArgumentType]
        self.reference, self.fingerprint = weights.reference, weights.fingerprint
        self.weights, self.parameters = weights, weights.model.num_parameters()
        self.context_length: int | None = getattr(weights.model.config, "max_position_embeddings", None)
        self._seed = seed
        self._scorer = PrefixScorer(weights.model)

    def loglik(self, prompts: Sequence[Prompt], texts: Sequence[str]) -> list[TextLikelihood | None]:
        """The log-likelihood of each text, its part beyond the model's context left out."""
        known: dict[int, tuple[int, ...]] = {}
        jobs = []
        for prompt, text_ids in zip(prompts, self._text_ids(texts), strict=True):
            if id(prompt) not in known:  # resamples come with the same object
                known[id(prompt)] = tuple(self._prompt_ids(prompt))
            prompt_ids = known[id(prompt)]
            room = None if self.context_length is None else max(0, self.context_length - len(prompt_ids))
            jobs.append((prompt_ids, tuple(text_ids[:room])))
        return [
            TextLikelihood(len(logps), float(logps.sum(dtype="float64")), logps) if len(logps) else None
            for logps in self._scorer.token_logps(jobs)
        ]

    def continuations(
        self, prompts: Sequence[Prompt], beginnings: Sequence[str], lengths: Sequence[int]
    ) -> list[str | None]:
        """How it goes on, greedily; None where no room is left."""
        said: list[str | None] = [None] * len(prompts)
        places, asked, settings = [], [], []
        begun = self._text_ids(beginnings)
        for place, (prompt, ids, length) in enumerate(zip(prompts, begun, lengths, strict=True)):
            whole = [*self._prompt_ids(prompt), *ids]
            room = length if self.context_length is None else min(length, self.context_length - len(whole))
            if whole and room > 0:
                places.append(place)
                asked.append(whole)
                settings.append(Sampling(temperature=0.0, max_tokens=room))
        answers = sample_any(self.weights.model, asked, settings, ends=self.weights.end_ids)
        for place, answer in zip(places, answers, strict=True):
            said[place] = str(self.weights.tokenizer.decode(answer.ids, skip_special_tokens=True))
        return said

    def generate(self, requests: Sequence[Request]) -> list[Reply | StillhouseError]:
        """Answers through the chat template."""
        return asyncio.run(TorchModel(self.weights, seed=self._seed).generate(requests))

    def affords(self, texts: Sequence[str]) -> bool:
        """Nobody counts here."""
        return True

    def close(self) -> None:
        """Frees the weights."""
        del self.weights, self._scorer

    def _prompt_ids(self, prompt: Prompt) -> list[int]:
        """Ids after which the text stands: the conversation's, or the begin token where there is one."""
        tokenizer = self.weights.tokenizer
        if prompt:
            return self.weights.template.encode_prompt(tokenizer, prompt)
        begin = tokenizer.bos_token_id
        return [begin] if isinstance(begin, int) else []

    def _text_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Ids of texts that stand after something, many at a time."""
        tokenizer = self.weights.tokenizer
        if tokenizer.backend_tokenizer.token_to_id(_BYTE_FALLBACK) is not None:
            marks = list(added_tokens(tokenizer))
            return [encode_segment(tokenizer, text, _ANYTHING, marks) for text in texts]
        found = tokenizer.backend_tokenizer.encode_batch(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in found]
