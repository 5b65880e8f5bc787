"""Ed25519 keys (RFC 8032) in PEM, as OpenSSL reads and writes them. Needs the extra ``trust``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvtool.artifact.store_key import BadKey, shown_name
from kvtool.digest import digest
from kvtool.errors import ModelError, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

SIGNING_KEY = "KVTOOL_SIGNING_KEY"
"""The variable with the key to sign with: its file, or the PEM itself."""

SIGNED_BY = "KVTOOL_SIGNED_BY"
"""The variable with the public keys one of which must have signed: their files, separated as in ``PATH``, or the PEM itself."""

_BEGIN = "-----BEGIN "
_END = "-----END "


def make_key() -> tuple[bytes, bytes]:
    """A new private key and its public key, both as PEM."""
    serialization, ed25519 = _library()
    key = ed25519.Ed25519PrivateKey.generate()
    private = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return private, key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def signing_key(file: Path | None = None) -> Ed25519PrivateKey:
    """The key in ``file``, or in the environment. Raises ``BadKey``, ``UsageError`` where neither is given."""
    serialization, ed25519 = _library()
    text = str(file) if file is not None else os.environ.get(SIGNING_KEY, "")
    if not text.strip():
        raise UsageError(
            "the key to sign with", "is not given", f"name its file with --key or in {SIGNING_KEY}"
        )
    named = list(_pems(text, SIGNING_KEY, several=False))
    if len(named) != 1:
        raise BadKey(SIGNING_KEY, f"has {len(named)} keys", "expected one")
    ((where, pem),) = named
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise _bad(where, "private") from error
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise _bad(where, "private")
    private: Ed25519PrivateKey = key
    return private


def has_signing_key() -> bool:
    """Whether the environment has a key to sign with."""
    return bool(os.environ.get(SIGNING_KEY, "").strip())


def trusted_keys(files: Iterable[Path] = ()) -> dict[str, Ed25519PublicKey]:
    """Public keys by ``key_id``: those in ``files``, or where there are none those of the environment. Raises ``BadKey``."""
    texts = [str(file) for file in files] or [os.environ.get(SIGNED_BY, "")]
    named = [pem for text in texts if text.strip() for pem in _pems(text, SIGNED_BY, several=True)]
    if not named:
        return {}
    serialization, ed25519 = _library()
    keys: dict[str, Ed25519PublicKey] = {}
    for where, pem in named:
        try:
            key = serialization.load_pem_public_key(pem)
        except (ValueError, TypeError) as error:
            raise _bad(where, "public") from error
        if not isinstance(key, ed25519.Ed25519PublicKey):
            raise _bad(where, "public")
        keys[key_id(key)] = key
    return keys


def public_key(text: str) -> Ed25519PublicKey:
    """The key that ``key_text`` wrote. Raises ``BadKey``."""
    _, ed25519 = _library()
    try:
        key: Ed25519PublicKey = ed25519.Ed25519PublicKey.from_public_bytes(bytes.fromhex(text))
    except ValueError as error:
        raise BadKey(text[:80], "is no public key", "expected 64 hexadecimal digits") from error
    return key


def key_text(key: Ed25519PublicKey) -> str:
    """A public key, as stores name it: its 32 bytes in hexadecimal."""
    return key.public_bytes_raw().hex()


def key_id(key: Ed25519PublicKey) -> str:
    """A public key's short name: the beginning of its digest, 16 hexadecimal digits."""
    return digest(key.public_bytes_raw())[:16]


def _pems(text: str, variable: str, *, several: bool) -> Iterator[tuple[str, bytes]]:
    """Where each key stands, and its PEM: ``text`` is that, or names of files."""
    if _BEGIN in text:
        for part in text.split(_BEGIN)[1:]:
            yield variable, (_BEGIN + part).encode()
        return
    for name in text.split(os.pathsep) if several else [text]:
        try:
            data = Path(name.strip()).read_text()
        except (OSError, UnicodeDecodeError) as error:
            cause = error.strerror if isinstance(error, OSError) else "not text"
            where = f"{variable}: {shown_name(name)}"
            raise BadKey(where, f"cannot be read ({cause})", "expected the file of a key, or PEM") from None
        if _END not in data:
            raise BadKey(name, "is no key", "expected Ed25519 in PEM, as kvtool keygen or openssl writes it")
        for part in data.split(_BEGIN)[1:]:
            yield name, (_BEGIN + part).encode()


def _bad(where: str, kind: str) -> BadKey:
    remedy = "expected Ed25519 in PEM without a password, as kvtool keygen or openssl writes it"
    return BadKey(where, f"is no {kind} key", remedy)


def _library() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ModuleNotFoundError as error:
        raise ModelError("signatures", f"need {error.name}", "pip install 'kvtool[trust]'") from error
    return serialization, ed25519
