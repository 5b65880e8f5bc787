"""Whose signatures a store's documents must have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from kvtool.store.layout import Marker
from kvtool.store.manifest import Document
from kvtool.store.trust.keys import key_id, key_text, public_key, trusted_keys
from kvtool.store.trust.signatures import refuse_unsigned

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey


@dataclass(frozen=True)
class TrustPolicy:
    """Of each of ``rules``, public keys in hexadecimal, one must have signed. Without rules every document passes."""

    rules: Sequence[Sequence[str]] = ()

    @classmethod
    def of(cls, marker: Marker = Marker()) -> TrustPolicy:
        """What the environment of this process requires, and what the store requires of all that use it."""
        of_environment = tuple(map(key_text, trusted_keys().values()))
        return cls(tuple(filter(None, (of_environment, marker.signed_by))))

    def also(self, trusted: Mapping[str, Ed25519PublicKey]) -> TrustPolicy:
        return TrustPolicy((*self.rules, tuple(map(key_text, trusted.values()))))

    def checked(self, document: Document) -> Document:
        """The document. Raises ``NotSigned`` if a rule is not kept."""
        for rule in self.rules:
            refuse_unsigned(document, {key_id(key): key for key in map(public_key, rule)})
        return document
