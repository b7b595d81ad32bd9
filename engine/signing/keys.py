"""Ed25519 keys in PEM files, as openssl and others write them."""

import stat
from collections.abc import Callable
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Refused
from ..system.durable import open_regular

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

MOST_BYTES = 1 << 16  # of a PEM file
HOW_TO_MAKE = "make one with openssl genpkey -algorithm ed25519 -out key.pem"


def private_key(path: Path, password: Callable[[], str]) -> "Ed25519PrivateKey":
    """Read a private key; `password` is asked for one that is encrypted. Raises Refused."""
    serialization: Any = import_module("cryptography.hazmat.primitives.serialization")
    ed25519: Any = import_module("cryptography.hazmat.primitives.asymmetric.ed25519")
    pem = _pem(path)
    if b"PRIVATE KEY" not in pem:
        raise Refused(f"{path} is not a private key in PEM: {HOW_TO_MAKE}")
    secret = password().encode() if b"ENCRYPTED" in pem else None
    try:
        key = serialization.load_pem_private_key(pem, secret)
    except (ValueError, TypeError, _unsupported()):
        hint = "or its password is another" if secret is not None else HOW_TO_MAKE
        raise Refused(f"{path} cannot be read as a private key in PEM: {hint}") from None
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise Refused(f"{path} is not a key of Ed25519: {HOW_TO_MAKE}")
    return key


def public_key(path: Path) -> "Ed25519PublicKey":
    """Read a public key; raises Refused."""
    serialization: Any = import_module("cryptography.hazmat.primitives.serialization")
    ed25519: Any = import_module("cryptography.hazmat.primitives.asymmetric.ed25519")
    pem = _pem(path)
    if b"PRIVATE KEY" in pem:
        raise Refused(
            f"{path} is a private key: give the public one, which openssl pkey -in {path} -pubout prints"
        )
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, TypeError, _unsupported()):
        raise Refused(f"{path} cannot be read as a public key in PEM") from None
    if not isinstance(key, ed25519.Ed25519PublicKey):
        raise Refused(f"{path} is not a key of Ed25519: {HOW_TO_MAKE}")
    return key


def fingerprint_of(key: "Ed25519PublicKey") -> str:
    """Return the SHA-256 of the 32 bytes of a public key."""
    return sha256(key.public_bytes_raw()).hexdigest()


def is_signed(key: "Ed25519PublicKey", signature: bytes, signed: bytes) -> bool:
    """Tell whether the holder of a key signed these bytes."""
    exceptions: Any = import_module("cryptography.exceptions")
    try:
        key.verify(signature, signed)
    except exceptions.InvalidSignature:
        return False
    return True


def others_may_read(path: Path) -> bool:
    """Tell whether a private key is open to other users."""
    return bool(stat.S_IMODE(path.stat().st_mode) & 0o077)


def _pem(path: Path) -> bytes:
    try:
        with open_regular(path) as file:
            return file.read(MOST_BYTES)
    except OSError as error:
        raise Refused(f"the key {path} cannot be read: {error.strerror}") from None


def _unsupported() -> type[Exception]:
    return import_module("cryptography.exceptions").UnsupportedAlgorithm
