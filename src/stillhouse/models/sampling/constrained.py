"""Constrained decoding: restricts answers to a JSON schema, through llguidance.

The schema becomes a grammar over bytes, and the grammar a mask over the tokenizer's tokens, for any tokenizer
that the `tokenizers` library reads. Whitespace between JSON tokens is optional but bounded (as in llama.cpp):
without a bound, a model can write whitespace until its token limit.

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

MAX_SCHEMA_CHARACTERS = 40_000
"""Characters. Compile time grows faster than a schema's length (1,500 properties: about 2 s)."""
_OPTIONS = {"whitespace_flexible": True, "whitespace_pattern": r"( |\n{1,2}[ \t]{0,20})?"}
_ONE_LINE_OPTIONS = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
_URI_CHARACTER = r"([A-Za-z0-9\-._~!$&'()*+,;=:@]|%[0-9A-Fa-f]{2})"
_URI = (  # a scheme, then a host with port and path or a path alone (or a file's path), a query, a fragment
    rf"^(file://(/{_URI_CHARACTER}*)+|[A-Za-z][A-Za-z0-9+.\-]*:"
    rf"(//[A-Za-z0-9\-._~]+(:[0-9]{{1,4}})?(/{_URI_CHARACTER}*)*|{_URI_CHARACTER}+(/{_URI_CHARACTER}*)*))"
    rf"(\?({_URI_CHARACTER}|[/?])*)?(#({_URI_CHARACTER}|[/?])*)?$"
)
_FORMAT_PATTERNS = {"uri": _URI}
"""Formats of strings that llama.cpp's llguidance does not know -> a pattern that enforces them, on both
backends (RFC 3986, without user names and IPv6 addresses)."""


def with_guidance_options(schema: Mapping[str, Any]) -> dict[str, Any]:
    """``schema`` with our options for llguidance, and in a form that both copies of it know."""
    return {**_with_known_formats(schema), "x-guidance": _OPTIONS}


def with_one_line_options(schema: Mapping[str, Any]) -> dict[str, Any]:
    """``schema`` with options for llama.cpp's llguidance: JSON on one line, as `json.dumps` writes it.

    That llguidance is older than Python's: it allows any number of whitespace patterns in a row.
    """
    return {**schema, "x-guidance": _ONE_LINE_OPTIONS}


def validated_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Checks that an answer can follow ``schema``; returns it as :func:`with_guidance_options` does.

    llama.cpp ignores an invalid schema without an error, so the check happens here.

    Raises:
        SchemaError: it is malformed or too long, nothing satisfies it, or it contains what a grammar cannot
            enforce.
        MissingExtraError: llguidance is not installed.
    """
    try:
        prepared = with_guidance_options(schema)
        size = len(json.dumps(prepared))
    except RecursionError as error:
        raise SchemaError("the JSON schema is nested too deeply") from error
    if size > MAX_SCHEMA_CHARACTERS:
        raise SchemaError(f"the JSON schema has {size:,} characters; the limit is {MAX_SCHEMA_CHARACTERS:,}")
    _matcher(_llguidance().LLTokenizer("byte"), prepared)
    return prepared


def _with_known_formats(schema: Any) -> Any:
    """The schema with a pattern in place of each format that only Python's llguidance knows."""
    if isinstance(schema, list):
        return [_with_known_formats(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    copied = {
        # What stands in these is data, or maps names to schemas.
        key: value
        if key in ("const", "enum", "default", "examples")
        else {name: _with_known_formats(item) for name, item in value.items()}
        if key in ("properties", "patternProperties", "$defs", "definitions") and isinstance(value, Mapping)
        else _with_known_formats(value)
        for key, value in schema.items()
    }
    known = copied.get("format")
    if isinstance(known, str) and known in _FORMAT_PATTERNS and "pattern" not in copied:
        del copied["format"]
        # A format applies to strings only, and so does a pattern.
        copied["pattern"] = _FORMAT_PATTERNS[known]
    return copied


class Constraint:
    """The position of one answer in its grammar. Not thread-safe."""

    def __init__(self, matcher: Any, width: int) -> None:
        self._matcher, self._width = matcher, width
        self.failure: ModelError | None = None
        """Why the grammar could not be followed further (it became too large). Any thread can read this; all
        else is for the sampling thread, since a matcher must not be called while it is in use."""

    @property
    def finished(self) -> bool:
        """Whether only the end can follow; also True after a failure."""
        return self._matcher.is_stopped()

    def allowed_tokens(self) -> np.ndarray:
        """Which tokens can come next [V]; end tokens where the answer can end. After a failure, all."""
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        if self._failed():
            return np.ones(self._width, bool)
        return np.unpackbits(bits, bitorder="little")[: self._width].astype(bool)

    def consume(self, token: int) -> None:
        """Advances by one token, which must be an allowed one."""
        self._matcher.consume_token(token)
        self._failed()

    def _failed(self) -> bool:
        if self._matcher.is_error() and self.failure is None:
            reason = _reason(self._matcher)
            self.failure = ModelError(f"the JSON schema could not be followed further: {reason}")
        return self.failure is not None


class ConstraintFactory:
    """Creates constraints for one model. Thread-safe.

    Args:
        width: columns of the model's logits (V); can exceed the tokenizer's number of tokens.
        ends: ids that end an answer.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, width: int, ends: Collection[int]) -> None:
        self._tokenizer, self._width, self._ends = tokenizer, width, sorted(ends)
        self._lock = threading.Lock()

    def create(self, schema: Mapping[str, Any]) -> Constraint:
        """A constraint at the beginning of an answer. The first call takes a second longer.

        Args:
            schema: from :func:`with_guidance_options`.

        Raises:
            SchemaError: llguidance does not support it.
        """
        with self._lock:  # cached_property has no lock of its own, and the conversion takes a second
            tokens = self._tokens
        return Constraint(_matcher(tokens, schema), self._width)

    @functools.cached_property
    def _tokens(self) -> Any:
        """The tokenizer in llguidance's form."""
        size = max(self._width, len(self._tokenizer))
        return _llguidance().hf.from_tokenizer(self._tokenizer, n_vocab=size, eos_token=self._ends or None)


def _matcher(tokens: Any, schema: Mapping[str, Any]) -> Any:
    """A matcher at the beginning of an answer."""
    matchers = _llguidance().LLMatcher
    matcher = matchers(tokens, matchers.grammar_from_json_schema(json.dumps(schema)), log_level=0)
    if not matcher.is_error():
        matcher.compute_bitmask()  # some unsatisfiable schemas fail only here
    if matcher.is_error():
        raise SchemaError(f"the JSON schema cannot be followed: {_reason(matcher)}")
    return matcher


def _reason(matcher: Any) -> str:
    """llguidance's message without the dump of its state and grammar."""
    reason = matcher.get_error().partition("\n<state>")[0]
    return "nothing satisfies it" if reason.startswith("NoExtension") else reason[:300]


def _llguidance() -> Any:
    try:
        import llguidance
        import llguidance.hf
    except ImportError as error:
        raise MissingExtraError(
            "answers that follow a JSON schema need llguidance", hint="pip install 'stillhouse[serve]'"
        ) from error
    return llguidance
