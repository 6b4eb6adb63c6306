"""What the two local backends share: prompts as ids, seeds and stops."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stillhouse.errors import ContextLengthError, ModelError, StillhouseError
from stillhouse.models.chat.template import ChatTemplate
from stillhouse.models.types import Request, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

STOP_MARGIN = 16  # tokens decoded beyond the longest stop: special ones add no text


class PromptEncoder:
    """Turns requests into token ids for one model."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        template: ChatTemplate,
        context_length: int | None,
        seed: int,
    ) -> None:
        self.tokenizer, self.template, self.seed = tokenizer, template, seed
        self.context_length = context_length

    def encode(
        self, request: Request, *, answer_prefix: str = "", **variables: Any
    ) -> list[int] | StillhouseError:
        """The prompt's ids, or why there are none. Without messages it is the begin token alone.

        Args:
            answer_prefix, variables: as of :meth:`ChatTemplate.encode_prompt`.
        """
        try:
            ids = (
                self._opening()
                if not request.messages
                else self.template.encode_prompt(
                    self.tokenizer, request.messages, answer_prefix=answer_prefix, **variables
                )
            )
        except StillhouseError as error:
            return error
        if self.context_length is not None and len(ids) >= self.context_length:
            return ContextLengthError(
                f"the prompt {request.id} has {len(ids)} tokens, the model's context {self.context_length}",
                hint="Shorten the prompt, or use a teacher with a longer context.",
            )
        return ids

    def _opening(self) -> list[int]:
        begin = self.tokenizer.bos_token_id
        if not isinstance(begin, int):
            raise ModelError(
                "this model's tokenizer has no begin token, so nothing can be written after nothing",
                hint="Give a prompt.",
            )
        return [begin]

    def resolve_sampling(self, request: Request, prompt_tokens: int) -> Sampling:
        """The request's settings with a seed of its own and no more tokens than the context has room for."""
        sampling = request.sampling
        if sampling.seed is None:
            digest = hashlib.sha256(f"{self.seed}:{request.id}".encode()).digest()
            sampling = replace(sampling, seed=int.from_bytes(digest[:4], "big") >> 1)
        return replace(
            self.fit_to_context(sampling, prompt_tokens), stop=(*sampling.stop, *self.template.stops)
        )

    def fit_to_context(self, sampling: Sampling, prompt_tokens: int) -> Sampling:
        """The settings with no more tokens than the context has room for."""
        if self.context_length is None:
            return sampling
        return replace(sampling, max_tokens=min(sampling.max_tokens, self.context_length - prompt_tokens))

    def ends_in_reasoning(self, ids: Sequence[int]) -> bool:
        """Whether the prompt itself ends inside the model's thoughts."""
        tail = str(self.tokenizer.decode(list(ids[-8:])))
        return tail.rstrip().endswith("<think>")


def has_stop(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int], stops: Sequence[str]) -> bool:
    """Whether an answer that goes on token by token now contains a stop; only its end is looked at."""
    if not stops:
        return False
    window = max(len(stop.encode()) for stop in stops) + STOP_MARGIN  # a token adds a byte or more
    text = str(tokenizer.decode(list(ids[-window:]), skip_special_tokens=True))
    return any(stop in text for stop in stops)


def cut_at_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """``text`` before the first of ``stops``, and whether one was there."""
    places = [text.index(stop) for stop in stops if stop in text]
    return (text[: min(places)], True) if places else (text, False)
