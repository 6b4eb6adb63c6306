"""Watermark keys: 256 random bits, one for all outputs or one for each account.

A key is never printed: it appears in no ``repr``, and its :func:`key_fingerprint` names it in public. A
holder of the key can find its mark and can forge it, so the key is opened only with the evidence.
"""

from __future__ import annotations

import hmac
import secrets
from pathlib import Path

from stillhouse.errors import UsageError
from stillhouse.files import write_secret
from stillhouse.hashing import sha256_bytes

BYTES = 32
# Versioned prefixes keep derived keys, fingerprints and other uses of the same secret apart.
_ACCOUNT = b"stillhouse account key 1\0"
_NAME = b"stillhouse key name 1\0"


def new_key() -> bytes:
    """A fresh key of 256 bits from the system's random numbers."""
    return secrets.token_bytes(BYTES)


def account_key(master: bytes, account: str) -> bytes:
    """The key of one account, derived from a master key: HMAC-SHA-256 (RFC 2104) over the account's name.

    An account's key reveals nothing about other accounts' keys or the master key, so one can be opened as
    evidence while the others stay in use.
    """
    return hmac.digest(checked_key(master), _ACCOUNT + account.encode(), "sha256")


def key_fingerprint(key: bytes) -> str:
    """SHA-256 of a fixed prefix and the key, in hexadecimal: names the key without revealing it."""
    return sha256_bytes(_NAME + checked_key(key))


def checked_key(key: bytes) -> bytes:
    """Returns ``key`` if it has 256 bits.

    Raises:
        UsageError: it has another length.
    """
    if len(key) != BYTES:
        raise UsageError(
            f"a watermark key has {8 * BYTES} bits, this one has {8 * len(key)}",
            hint="Make one with: openssl rand -hex 32",
        )
    return key


def parse_key(text: str, where: str) -> bytes:
    """Parses a key of 64 hexadecimal digits; surrounding white space is ignored.

    Args:
        where: the file or variable that the error names; the error never quotes the text.

    Raises:
        UsageError: the text is not a key.
    """
    try:
        return checked_key(bytes.fromhex(text.strip()))
    except (ValueError, UsageError):
        raise UsageError(
            f"{where} does not hold a watermark key, {2 * BYTES} hexadecimal digits",
            hint="Make one with: openssl rand -hex 32",
        ) from None


def read_key(path: str | Path) -> bytes:
    """Reads a key from a file; see :func:`parse_key`.

    Raises:
        UsageError: the file does not exist or does not hold a key.
    """
    try:
        return parse_key(Path(path).read_text("utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"the watermark key {path} cannot be read") from error


def write_key(path: str | Path, key: bytes) -> None:
    """Writes a key to a new file that only its owner can read.

    Raises:
        UsageError: the file exists; a key that marked something must not be lost.
        StorageError: the file cannot be written.
    """
    exists = UsageError(f"{path} exists, and keys are never overwritten", hint="Name another file.")
    write_secret(path, checked_key(key).hex() + "\n", if_exists=exists)
