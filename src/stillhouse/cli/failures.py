"""Any exception, as an error a user can read.

What other libraries raise for a full disk or too little memory has many shapes; here
they become our own errors. What is left is a fault of ours and says so.
"""

from __future__ import annotations

import errno

from stillhouse.errors import OutOfMemoryError, StillhouseError, StorageError, is_out_of_memory

_NO_SPACE = "no space left on device"


class InternalError(StillhouseError):
    """A fault in Stillhouse itself."""


def explain(error: BaseException) -> StillhouseError:
    """``error`` itself when it is ours, else the nearest of our errors."""
    if isinstance(error, StillhouseError):
        return error
    text = str(error).lower()
    if is_out_of_memory(error):
        return OutOfMemoryError(
            "not enough memory for this work",
            hint="Lower train.micro_tokens or train.max_length; `still plan` shows what is needed.",
        )
    if getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT) or _NO_SPACE in text:
        name = getattr(error, "filename", None)
        return StorageError(
            "the disk is full" + (f": could not write {name}" if name else ""),
            hint="Free some space and run the same command again; it goes on where it stopped.",
        )
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return StorageError(
            f"no permission: {error.filename or error}",
            hint="Choose another place with --out, or mend the permissions.",
        )
    summary = " ".join(str(error).split())
    return InternalError(
        f"internal error: {type(error).__name__}: {summary}"[:500],
        hint="Run again with --debug to see where, and please report it.",
    )
