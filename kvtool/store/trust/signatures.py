"""Signatures of documents: who vouches for a manifest, and through its digests for every byte of its artifacts."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING

from kvtool.errors import StoreError
from kvtool.store.manifest import Document
from kvtool.store.trust.keys import key_id

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


_REMEDY = "nothing of it was used; take it from who signs it, or trust the key of who has"


class NotSigned(StoreError):
    """A document that no trusted key has signed as it is."""


def sign(document: Document, key: Ed25519PrivateKey, variants: Collection[str] | None = None) -> Document:
    """The document with its variants, all by default, signed by ``key``, beside the signatures that it has.

    The same key gives the same bytes.
    """
    id = key_id(key.public_key())
    signed = {
        name: {**document.signatures.get(name, {}), id: key.sign(document.statement(name)).hex()}
        for name in document.every_variant
        if variants is None or name in variants
    }
    return replace(document, signatures={**document.signatures, **signed})


def has_signed(document: Document, key: Ed25519PublicKey) -> bool:
    """Whether the key has signed each variant of the document."""
    return all(_has_signed(key_id(key), key, document, variant) for variant in document.every_variant)


def refuse_unsigned(document: Document, trusted: Mapping[str, Ed25519PublicKey]) -> None:
    """Raises ``NotSigned``, naming the variant, unless trusted keys have signed each variant of the document.

    One without variants is signed by nobody.
    """
    if not document.every_variant:
        raise NotSigned(document.name, "has no variant, and so no signature", _REMEDY)
    for variant in document.every_variant:
        if not any(_has_signed(id, key, document, variant) for id, key in trusted.items()):
            raise NotSigned(
                document.name,
                f"{_state(document, variant, trusted)}; trusted: {', '.join(trusted)}",
                _REMEDY,
            )


def _has_signed(id: str, key: Ed25519PublicKey, document: Document, variant: str) -> bool:
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(bytes.fromhex(document.signatures[variant][id]), document.statement(variant))
    except (KeyError, ValueError, InvalidSignature):
        return False
    return True


def _state(document: Document, variant: str, trusted: Mapping[str, object]) -> str:
    signed = document.signatures.get(variant, {})
    if wrong := [id for id in signed if id in trusted]:
        return f"its variant {variant} has a signature by {wrong[0]} that is not of this document"
    return f"its variant {variant} is signed by {', '.join(signed) or 'nobody'}"
