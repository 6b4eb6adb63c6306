"""Every error a user can meet, in one file.

One root, :class:`StillhouseError`. Each error is also the standard type that a
caller would expect (``ValueError``, ``OSError`` …), carries the exit status of the
command, may carry a hint (what to do next), and survives pickling, so that it can
cross a process boundary unchanged.

Programmer errors are ``assert``; nothing here is for them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class StillhouseError(Exception):
    """Something a user can cause and can mend.

    Args:
        message: what is wrong and where (file, key, line).
        hint: what to do about it, as one sentence.
    """

    exit_status = 1
    report: Mapping[str, Any] = {}
    """What `--json` prints beside the error: what was found out before it."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self.message, self.hint)

    def __str__(self) -> str:
        return self.message


def _rebuild(kind: type[StillhouseError], message: str, hint: str | None) -> StillhouseError:
    return kind(message, hint=hint)


class UsageError(StillhouseError, ValueError):
    """The command line asks for something that does not exist or does not fit."""

    exit_status = 2


class RecipeError(StillhouseError, ValueError):
    """A recipe is malformed; the message names file, line and key."""

    exit_status = 2


class TermsError(StillhouseError, PermissionError):
    """A teacher's terms forbid the declared purpose, or nobody knows them."""

    exit_status = 3


class ModelNotFoundError(StillhouseError, FileNotFoundError):
    """A model reference points at nothing that can be loaded."""


class ModelError(StillhouseError, ValueError):
    """A model was found but cannot be used: damaged, unsafe, or of an unknown kind."""


class TokenizerMismatchError(ModelError):
    """Teacher and student (or a GGUF file and its tokenizer) do not share a vocabulary."""


class ContextLengthError(ModelError):
    """A prompt is longer than the model's context."""


class CapabilityError(StillhouseError, NotImplementedError):
    """The model cannot do what was asked of it (see ``model.can``)."""


class SchemaError(StillhouseError, ValueError):
    """A JSON schema for an answer is malformed, or says what cannot be enforced."""


class ApiError(StillhouseError, ConnectionError):
    """A remote teacher kept failing after all retries."""


class AuthenticationError(StillhouseError, PermissionError):
    """A remote teacher refused the key; never retried."""


class CorpusError(StillhouseError, ValueError):
    """A corpus or prompt file cannot be read, or does not have the expected columns."""


class EmptyCorpusError(CorpusError):
    """Nothing is left to learn from."""


class NonFiniteLossError(StillhouseError, ArithmeticError):
    """Training produced NaN or infinity; stopped before the optimizer step."""


class CheckpointError(StillhouseError, ValueError):
    """A checkpoint is damaged or belongs to another recipe."""


class IntegrityError(StillhouseError, ValueError):
    """A file differs from what the manifest recorded."""


class StorageError(StillhouseError, OSError):
    """The disk is full, or the place may not be written."""


class OutOfMemoryError(StillhouseError, MemoryError):
    """The work does not fit in memory with these settings."""


class MissingExtraError(StillhouseError, ImportError):
    """An optional package is needed; the hint names the extra to install."""


def says_out_of_memory(error: BaseException | None) -> bool:
    """Whether a library's exception means that memory ran out; torch says so in words, with several types."""
    if isinstance(error, MemoryError):
        return True
    words = ("can't allocate memory", "cannot allocate memory", "out of memory", "not enough memory")
    return isinstance(error, RuntimeError | OSError) and any(word in str(error).lower() for word in words)
