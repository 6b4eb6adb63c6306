"""Ed25519 keys and signatures: who wrote the evidence, and that it was not changed since.

A signature shows that the holder of the key wrote this file. It does not show when, or whether the content is
true.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from stillhouse.errors import IntegrityError, MissingExtraError, StorageError, UsageError
from stillhouse.files import write_secret

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def make_key(path: Path) -> str:
    """Writes a new private key (PEM, PKCS #8), for its owner only; returns the public key, hexadecimal.

    Raises:
        UsageError: the file exists; a key is never overwritten.
    """
    _require_cryptography()
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    key = Ed25519PrivateKey.generate()
    data = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_secret(path, data, if_exists=UsageError(f"{path} exists already; a key is never overwritten"))
    return public_hex(key)


def read_key(path: Path) -> Ed25519PrivateKey:
    """Reads the private key in a file.

    Raises:
        StorageError: the file cannot be read, or others can read it too.
        UsageError: it is not an Ed25519 key.
    """
    _require_cryptography()
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        data, mode = path.read_bytes(), path.stat().st_mode
    except OSError as error:
        raise StorageError(
            f"cannot read the key {path}: {error.strerror}", hint="Make one with: still trace key KEYFILE."
        ) from error
    if mode & 0o077:
        raise StorageError(f"other users can read the key {path}", hint=f"chmod 600 {path}")
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise UsageError(f"{path} is not a private key: {error}") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(f"{path} is a private key, but not an Ed25519 one")
    return key


def public_hex(key: Ed25519PrivateKey) -> str:
    """The public half, 64 hexadecimal digits."""
    return key.public_key().public_bytes_raw().hex()


def require_signature(public: str, signature: str, data: bytes) -> None:
    """Requires ``signature`` to be that of ``public`` over ``data``.

    Args:
        public, signature: hexadecimal.

    Raises:
        IntegrityError: the signature is invalid.
    """
    _require_cryptography()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(bytes.fromhex(signature), data)
    except ValueError as error:
        raise IntegrityError(f"not a public key and a signature in hexadecimal: {error}") from error
    except InvalidSignature as error:
        raise IntegrityError(
            f"the signature is not that of the key {public[:16]}… over this content"
        ) from error


def _require_cryptography() -> None:
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise MissingExtraError(
            "signatures need the package cryptography", hint="pip install 'stillhouse[trace]'"
        ) from error
