"""Signing the documents of a store."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from kvtool.store.catalog.local import LocalCatalog
from kvtool.store.trust.signatures import sign

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey


def sign_documents(
    catalog: LocalCatalog,
    key: Ed25519PrivateKey,
    names: Iterable[str] | None = None,
    *,
    dry_run: bool = False,
) -> tuple[list[str], list[str]]:
    """Signs documents, all by default, and returns the names of those that were signed now and of those that were already.

    Raises ``DocumentMissing`` for a name that the store does not hold; then none is signed.
    """
    documents = [catalog.stored(name) for name in dict.fromkeys(catalog if names is None else names)]
    signed = [document.name for document in documents if sign(document, key) != document]
    if signed and not dry_run:
        with catalog.writing():
            for name in signed:
                with catalog.changing():
                    # As it is now: others may have changed it.
                    catalog.write_manifest(sign(catalog.stored(name), key))
    return signed, [document.name for document in documents if document.name not in signed]
