"""Answers that follow a JSON schema: which tokens may come next, through llguidance.

The schema becomes a grammar over bytes, and the grammar a mask over the tokenizer's tokens, of any tokenizer
that the `tokenizers` library reads. Whitespace between JSON's parts is free but bounded (as in llama.cpp), so
that no answer is made of it.

Shapes: V vocabulary (columns of the logits).
"""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Collection, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from stillhouse.errors import MissingExtraError, ModelError, SchemaError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

LONGEST_SCHEMA = 40_000
"""Characters; the time that a schema takes grows faster than its length (1,500 properties: about 2 s)."""
_OPTIONS = {"whitespace_flexible": True, "whitespace_pattern": r"( |\n{1,2}[ \t]{0,20})?"}


def with_guidance_options(schema: Mapping[str, Any]) -> dict[str, Any]:
    """``schema`` with what llguidance, here or inside llama.cpp, is to know besides."""
    return {**schema, "x-guidance": _OPTIONS}


def validated_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Checks that an answer can follow ``schema``; returns it as :func:`with_guidance_options` does.

    llama.cpp ignores an invalid schema without an error, so the check happens here.

    Raises:
        SchemaError: it is malformed or too long, nothing can satisfy it, or it says what a grammar cannot
            enforce.
        MissingExtraError: llguidance is not installed.
    """
    made = with_guidance_options(schema)
    try:
        size = len(json.dumps(made))
    except RecursionError as error:
        raise SchemaError("the JSON schema is nested too deeply") from error
    if size > LONGEST_SCHEMA:
        raise SchemaError(f"the JSON schema has {size:,} characters; {LONGEST_SCHEMA:,} can be followed")
    _matcher(_llguidance().LLTokenizer("byte"), made)
    return made


class Constraint:
    """Where one answer is in its grammar. Not for several threads at once."""

    def __init__(self, matcher: Any, width: int) -> None:
        self._matcher, self._width = matcher, width
        self.failure: ModelError | None = None
        """Why the grammar could not be followed further (it became too large). Any thread may look; all
        else is for the one that samples, since a matcher in use may not be asked by another."""

    @property
    def finished(self) -> bool:
        """Whether nothing but the end may follow; also after a failure."""
        return self._matcher.is_stopped()

    def allowed_tokens(self) -> np.ndarray:
        """Which tokens may come next [V]: end tokens where the answer may end. After a failure all."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._failed():
            return np.ones(self._width, bool)
        return np.unpackbits(bits, bitorder="little")[: self._width].astype(bool)

    def consume(self, token: int) -> None:
        """Goes on by one token that was allowed."""
        self._matcher.consume_token(token)
        self._failed()

    def _failed(self) -> bool:
        if self._matcher.is_error() and self.failure is None:
            reason = _reason(self._matcher)
            self.failure = ModelError(f"the JSON schema could not be followed further: {reason}")
        return self.failure is not None


class ConstraintFactory:
    """Makes constraints for one model. For several threads.

    Args:
        width: columns of the model's logits (V); may be more than the tokenizer has tokens.
        ends: ids that end an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, width: int, ends: Collection[int]) -> None:
        self._tokenizer, self._width, self._ends = tokenizer, width, sorted(ends)
        self._lock = threading.Lock()

    def create(self, schema: Mapping[str, Any]) -> Constraint:
        """The beginning of an answer that follows ``schema``; the first call takes a second more.

        Args:
            schema: as :func:`with_guidance_options` gives it.

        Raises:
            SchemaError: it cannot be followed.
        """
        with self._lock:
            tokens = self._tokens
        return Constraint(_matcher(tokens, schema), self._width)

    @functools.cached_property
    def _tokens(self) -> Any:
        """The tokenizer in llguidance's form."""
        size = max(self._width, len(self._tokenizer))
        return _llguidance().hf.from_tokenizer(self._tokenizer, n_vocab=size, eos_token=self._ends or None)


def _matcher(tokens: Any, schema: Mapping[str, Any]) -> Any:
    """A matcher at the beginning of an answer, whose first mask was found."""
    matchers = _llguidance().LLMatcher
    matcher = matchers(tokens, matchers.grammar_from_json_schema(json.dumps(schema)), log_level=0)
    if not matcher.is_error():
        matcher.compute_bitmask()
    if matcher.is_error():
        raise SchemaError(f"the JSON schema cannot be followed: {_reason(matcher)}")
    return matcher


def _reason(matcher: Any) -> str:
    """llguidance's reason without its state and grammar, which would follow."""
    reason = matcher.get_error().partition("\n<state>")[0]
    return "nothing satisfies it" if reason.startswith("NoExtension") else reason[:300]


def _llguidance() -> Any:
    try:
        import llguidance
        import llguidance.hf
    except ImportError as error:
        raise MissingExtraError(
            "answers by a JSON schema need llguidance", hint="pip install 'stillhouse[serve]'"
        ) from error
    return llguidance
