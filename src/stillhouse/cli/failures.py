"""Converts any exception to an error that a user can read.

Other libraries raise many types for a full disk or too little memory; they become errors
of our own here. Any other exception is reported as an internal error.
"""

from __future__ import annotations

import errno

from stillhouse.errors import OutOfMemoryError, StillhouseError, StorageError, is_out_of_memory

_NO_SPACE = "no space left on device"


class InternalError(StillhouseError):
    """A bug in Stillhouse."""


def explain(error: BaseException) -> StillhouseError:
    """Returns ``error`` if it is a StillhouseError, else the closest StillhouseError."""
    if isinstance(error, StillhouseError):
        return error
    text = str(error).lower()
    if is_out_of_memory(error):
        return OutOfMemoryError(
            "not enough memory for this work",
            hint="Lower train.micro_tokens or train.max_length; `still plan` shows the memory of each stage.",
        )
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or _NO_SPACE in text:
        name = getattr(error, "filename", None)
        return StorageError(
            "the disk is full" + (f": could not write {name}" if name else ""),
            hint="Free some space and run the same command again.",
        )
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(
            f"no permission: {error.filename or error}",
            hint="Choose another directory with --out, or change the permissions.",
        )
    summary = " ".join(str(error).split())  # cut below: a library's message may contain a whole tensor
    return InternalError(
        f"internal error: {type(error).__name__}: {summary}"[:500],
        hint="Run again with --debug for the traceback, and please report it.",
    )
