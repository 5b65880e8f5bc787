"""Whose signatures a store's documents must have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from kvtool.store.layout import Marker
from kvtool.store.manifest import Document
from kvtool.store.trust.keys import key_id, public_key, trusted_keys
from kvtool.store.trust.signatures import refuse_unsigned

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


@dataclass(frozen=True)
class TrustPolicy:
    """For each of ``rules``, public keys by id, one of them must have signed. Without rules every document passes."""

    rules: Sequence[Mapping[str, Ed25519PublicKey]] = field(default_factory=tuple)

    @classmethod
    def of(cls, marker: Marker) -> TrustPolicy:
        """What the environment of this process requires, and what the store requires of all."""
        of_store = {key_id(key): key for key in map(public_key, marker.signed_by)}
        return cls(tuple(filter(None, (trusted_keys(), of_store))))

    def checked(self, document: Document) -> Document:
        """The document. Raises ``NotSigned`` if a rule is not kept."""
        for trusted in self.rules:
            refuse_unsigned(document, trusted)
        return document
