"""The errors that a user can cause; :class:`StillhouseError` is the base class of all.

Each error is also the standard type that a caller expects (``ValueError``,
``OSError`` …), has the exit status of the command and an optional hint (what to do
next), and can be pickled, so that it crosses a process boundary unchanged.

Programmer errors are assertions and have no class here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class StillhouseError(Exception):
    """Base class of the errors that a user can cause and fix.

    Args:
        message: what is wrong and where (file, key, line).
        hint: what to do about it, in one sentence.
    """

    exit_status = 1
    report: Mapping[str, Any] = {}
    """Results from before the error, which `--json` prints with it."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        if hint:
            self.add_note(f"hint: {hint}")  # for programs: a traceback shows it

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.hint)

    def __str__(self) -> str:
        return self.message


def _rebuild(kind: type[StillhouseError], message: str, hint: str | None) -> StillhouseError:
    return kind(message, hint=hint)


class UsageError(StillhouseError, ValueError):
    """The command line is invalid, or names something that does not exist."""

    exit_status = 2


class RecipeError(StillhouseError, ValueError):
    """A recipe is invalid; the message names file, line and key."""

    exit_status = 2


class TermsError(StillhouseError, PermissionError):
    """A teacher's terms forbid the declared purpose, or are unknown."""

    exit_status = 3


class ModelNotFoundError(StillhouseError, FileNotFoundError):
    """A model reference names no model that can be loaded."""


class InvalidReferenceError(ModelNotFoundError):
    """A model reference is malformed, or what it names is not a model; no other file would help."""

    exit_status = 2


class ModelError(StillhouseError, ValueError):
    """A model exists but cannot be used: it is damaged, unsafe or of an unknown kind."""


class ChatTemplateError(ModelError):
    """A chat template is malformed, or refuses a conversation."""


class TokenizerMismatchError(ModelError):
    """Teacher and student (or a GGUF file and its tokenizer) do not share a vocabulary."""


class ContextLengthError(ModelError):
    """A prompt is longer than the model's context."""


class PromptRefusedError(ModelError):
    """A teacher's content policy refuses one prompt."""


class ParameterError(ModelError):
    """An API refuses a parameter of the request; every prompt would fail alike."""


class CapabilityError(StillhouseError, NotImplementedError):
    """The model does not support the request (see ``model.can``)."""


class SchemaError(StillhouseError, ValueError):
    """A JSON schema for an answer is invalid, or demands what cannot be enforced."""


class ApiError(StillhouseError, ConnectionError):
    """A remote teacher still failed after all retries."""


class AuthenticationError(StillhouseError, PermissionError):
    """A remote teacher rejected the API key; never retried."""


class CreditError(StillhouseError, PermissionError):
    """A remote teacher's account has no credit left; never retried."""


class CorpusError(StillhouseError, ValueError):
    """A corpus or prompt file cannot be read, or lacks the expected columns."""


class EmptyCorpusError(CorpusError):
    """No document is left to train on or to measure on."""


class NonFiniteLossError(StillhouseError, ArithmeticError):
    """Training produced NaN or infinity and stopped before the optimizer step."""


class CheckpointError(StillhouseError, ValueError):
    """A checkpoint is damaged or belongs to another recipe."""


class IntegrityError(StillhouseError, ValueError):
    """A file differs from what the manifest recorded."""


class AddressError(StillhouseError, OSError):
    """The address of a server is not available, e.g. because its port is in use."""


class StorageError(StillhouseError, OSError):
    """The disk is full, or the path is not writable."""


class OutOfMemoryError(StillhouseError, MemoryError):
    """The work does not fit in memory with the current settings."""


class MissingExtraError(StillhouseError, ImportError):
    """An optional package is missing; the hint names the extra to install."""


def is_out_of_memory(error: BaseException | None) -> bool:
    """Whether a library's exception means that memory ran out."""
    if isinstance(error, MemoryError):
        return True
    # torch raises several types for it; only the text of the message is common to them
    phrases = ("can't allocate memory", "cannot allocate memory", "out of memory", "not enough memory")
    return isinstance(error, RuntimeError | OSError) and any(p in str(error).lower() for p in phrases)
