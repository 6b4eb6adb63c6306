"""Keys of marks: 256 random bits, one for everybody's outputs or one for each account.

A key is never printed: it does not appear in the ``repr`` of anything, and what names it in public is its
:func:`key_fingerprint`. Whoever has a key can find its mark, and can forge it; so it is opened only when the
evidence is.
"""

from __future__ import annotations

import hmac
import secrets
from pathlib import Path

from stillhouse.errors import UsageError
from stillhouse.files import write_secret
from stillhouse.hashing import sha256_bytes

BYTES = 32
_ACCOUNT = b"stillhouse account key 1\0"
_NAME = b"stillhouse key name 1\0"


def new_key() -> bytes:
    """A fresh key of 256 bits from the system's random numbers."""
    return secrets.token_bytes(BYTES)


def account_key(master: bytes, account: str) -> bytes:
    """The key of one account, derived from a master key: HMAC-SHA-256 (RFC 2104) over the account's name.

    Keys of different accounts tell nothing of each other or of the master key, so that one can be opened in
    evidence and the others go on.
    """
    return hmac.digest(checked_key(master), _ACCOUNT + account.encode(), "sha256")


def key_fingerprint(key: bytes) -> str:
    """SHA-256 of the key behind a fixed prefix, in hexadecimal: names the key without telling it."""
    return sha256_bytes(_NAME + checked_key(key))


def checked_key(key: bytes) -> bytes:
    """``key``, if it has 256 bits.

    Raises:
        UsageError: it has not.
    """
    if len(key) != BYTES:
        raise UsageError(
            f"a watermark key has {8 * BYTES} bits, this one {8 * len(key)}",
            hint="Make one with: openssl rand -hex 32",
        )
    return key


def parse_key(text: str, where: str) -> bytes:
    """The key that ``text`` writes in 64 hexadecimal digits; blanks around them do not count.

    Args:
        where: a file or a variable, for the error, which never quotes the text.

    Raises:
        UsageError: it is not such a text.
    """
    try:
        return checked_key(bytes.fromhex(text.strip()))
    except (ValueError, UsageError):
        raise UsageError(
            f"{where} does not hold a watermark key, {2 * BYTES} hexadecimal digits",
            hint="Make one with: openssl rand -hex 32",
        ) from None


def read_key(path: str | Path) -> bytes:
    """The key in a file; see :func:`parse_key`.

    Raises:
        UsageError: no such file, or no key in it.
    """
    try:
        return parse_key(Path(path).read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the watermark key {path} cannot be read") from error


def write_key(path: str | Path, key: bytes) -> None:
    """Writes a key to a new file that only its owner may read.

    Raises:
        UsageError: the file exists; a key that has marked something must not be lost.
        StorageError: it cannot be written.
    """
    there = UsageError(f"{path} exists, and keys are never overwritten", hint="Name another file.")
    write_secret(path, checked_key(key).hex() + "\n", if_exists=there)
