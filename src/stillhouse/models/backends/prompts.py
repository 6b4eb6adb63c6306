"""Prompts as token ids, seeds and stop strings, for the two local backends."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from stillhouse.errors import ContextLengthError, ModelError, StillhouseError
from stillhouse.hashing import seed_for_item
from stillhouse.models.architecture.embedding_rows import require_ids
from stillhouse.models.chat.answer_header import AnswerHeader, find_answer_header
from stillhouse.models.chat.encode import added_tokens
from stillhouse.models.chat.reasoning import REASONING_START, split_reasoning
from stillhouse.models.chat.template import ChatTemplate
from stillhouse.models.types import Request, Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

STOP_MARGIN = 16  # tokens decoded beyond the longest stop, since special tokens add no text


def shared_context_note(context: int, own: int, conversations: int, cache_bytes: int) -> str:
    """Why ``context`` is less than the model's ``own``, in a phrase that follows it; empty if it is not.

    Args:
        conversations: that share ``cache_bytes`` of memory.
    """
    if context >= own:
        return ""
    memory = f"{conversations} conversations share {cache_bytes / 2**30:g} GiB of memory"
    return f"of the model's own {own:,}: {memory}"


class PromptEncoder:
    """Turns requests into token ids for one model.

    Args:
        variables: for the chat template of every request, such as `enable_thinking`.
        rows: of the model's embedding, if the tokenizer can have ids beyond it.
        context_note: why ``context_length`` is less than the model's own, as of :func:`shared_context_note`.

    Raises:
        ModelError: the template does not read one of ``variables``.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerFast,
        template: ChatTemplate,
        context_length: int | None,
        seed: int,
        variables: Mapping[str, Any] | None = None,
        *,
        rows: int | None = None,
        context_note: str = "",
    ) -> None:
        self.tokenizer, self.template, self.seed = tokenizer, template, seed
        self.context_length, self.rows, self.context_note = context_length, rows, context_note
        self.variables = dict(variables or {})
        template.require_variables(self.variables)

    def encode(
        self,
        request: Request,
        *,
        answer_prefix: str = "",
        answer_text: str = "",
        with_tools: bool = False,
        **variables: Any,
    ) -> list[int] | StillhouseError:
        """The prompt's ids, or the error. Without messages the prompt is the begin token alone.

        Args:
            answer_prefix, answer_text, variables: as of :meth:`ChatTemplate.encode_prompt`.
            with_tools: use the template for conversations with tools, if the model has one.
        """
        template = self.template.for_tools if with_tools else self.template
        try:
            ids = (
                self._begin_token()
                if not request.messages
                else template.encode_prompt(
                    self.tokenizer,
                    request.messages,
                    answer_prefix=answer_prefix,
                    answer_text=answer_text,
                    **{**self.variables, **variables},
                )
            )
            if self.rows is not None:
                require_ids(ids, self.rows, where=f"the prompt {request.id}")
        except StillhouseError as error:
            return error
        if self.context_length is not None and len(ids) >= self.context_length:
            return self.too_long(f"the prompt {request.id}", len(ids))
        return ids

    def too_long(self, what: str, tokens: int) -> ContextLengthError:
        """The error for a text that does not fit into the context; it says why the context is what it is."""
        context = (
            f"the context here is {self.context_length} tokens {self.context_note}"
            if self.context_note
            else f"the model's context {self.context_length}"
        )
        return ContextLengthError(
            f"{what} has {tokens} tokens, {context}",
            hint="Shorten the prompt, or use a model with a longer context.",
        )

    def _begin_token(self) -> list[int]:
        begin = self.tokenizer.bos_token_id
        if not isinstance(begin, int):
            raise ModelError(
                "this model's tokenizer has no begin token, so it cannot continue an empty prompt",
                hint="Give a prompt.",
            )
        return [begin]

    def resolve_sampling(self, request: Request, prompt_tokens: int) -> Sampling:
        """The request's settings with a seed, the template's stops, and no more tokens than the context
        holds.

        A seed that is derived from the request's id does not depend on the order of requests, so that a run
        that resumes gets the same answers.
        """
        sampling = request.sampling
        if sampling.seed is None:
            sampling = replace(sampling, seed=seed_for_item(self.seed, request.id))
        return replace(
            self.fit_to_context(sampling, prompt_tokens), stop=(*sampling.stop, *self.template.stops)
        )

    def fit_to_context(self, sampling: Sampling, prompt_tokens: int) -> Sampling:
        """The settings with no more tokens than the context holds after the prompt."""
        if self.context_length is None:
            return sampling
        return replace(sampling, max_tokens=min(sampling.max_tokens, self.context_length - prompt_tokens))

    def read_answer(
        self, prompt: Sequence[int], answer: Sequence[int], stops: Sequence[str]
    ) -> tuple[str, str | None, bool]:
        """The text of generated tokens, their reasoning or None, and whether one of ``stops`` ended them."""
        if self._header is None:
            text, stopped = cut_at_stop(
                str(self.tokenizer.decode(list(answer), skip_special_tokens=True)), stops
            )
            return *split_reasoning(text, inside=self.ends_in_reasoning(prompt)), stopped
        text, stopped = cut_at_stop(str(self.tokenizer.decode(list(answer))), stops)
        text, reasoning = self._header.split(text)
        for token in self._special_tokens:
            text, reasoning = text.replace(token, ""), reasoning and reasoning.replace(token, "")
        return text, reasoning, stopped

    @functools.cached_property
    def _header(self) -> AnswerHeader | None:
        return find_answer_header(self.template.render, self._special_tokens)

    @functools.cached_property
    def _special_tokens(self) -> list[str]:
        return [token for token, is_special in added_tokens(self.tokenizer).items() if is_special]

    def ends_in_reasoning(self, ids: Sequence[int]) -> bool:
        """Whether the prompt ends with `<think>`, so that the answer begins with reasoning."""
        tail = str(self.tokenizer.decode(list(ids[-8:])))
        return tail.rstrip().endswith(REASONING_START)


def has_stop(tokenizer: PreTrainedTokenizerFast, ids: Sequence[int], stops: Sequence[str]) -> bool:
    """Whether an answer contains a stop string. Decodes only its end, so call it after every token."""
    if not stops:
        return False
    window = max(len(stop.encode()) for stop in stops) + STOP_MARGIN  # a token adds a byte or more
    text = str(tokenizer.decode(list(ids[-window:]), skip_special_tokens=True))
    return any(stop in text for stop in stops)


def cut_at_stop(text: str, stops: Sequence[str]) -> tuple[str, bool]:
    """``text`` before the first of ``stops``, and whether it contains one."""
    positions = [text.index(stop) for stop in stops if stop in text]
    return (text[: min(positions)], True) if positions else (text, False)
