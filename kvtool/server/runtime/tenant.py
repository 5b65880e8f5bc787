"""Tenants: who has a token, and what is theirs alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

from anyio import CapacityLimiter

from kvtool import limits
from kvtool.errors import UsageError
from kvtool.model.model import Model
from kvtool.store.backends.backend import without_secrets
from kvtool.store.base import Store
from kvtool.store.layout import address
from kvtool.store.local import LocalStore, writable
from kvtool.store.open import open_store
from kvtool.store.prefix_index import PrefixIndex, raw_of
from kvtool.store.remote import RemoteStore
from kvtool.store.room.quota import Quota


@dataclass
class Tenant:
    """One tenant's store, and what is known of it.

    ``quota`` is that of the store, or of a remote store's cache on this machine; None where there is none. ``hits`` counts by
    name how often each document was answered from. ``uploads`` limits those at a time, each of which has one of
    ``upload_threads``.
    """

    name: str
    store: Store
    prefixes: PrefixIndex
    quota: Quota | None = None
    hits: Counter[str] = field(default_factory=Counter)
    uploads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(limits.UPLOADS))
    upload_threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(limits.UPLOADS))

    def admitted(self, nbytes: int) -> AbstractContextManager[None]:
        """Makes room for ``nbytes`` that come within the context. Raises ``QuotaReached`` if there is none to be had."""
        return self.quota.admitted(nbytes) if self.quota else nullcontext()


def tenants_of(
    root: Path, names: Collection[str], model: Model, quotas: Mapping[str, int] = {}
) -> dict[str, Tenant]:
    """The store at ``root`` for everyone, who is called "", or a store below it for each of ``names``.

    ``quotas`` are in bytes, by name. Raises ``UsageError`` for ``names`` if ``root`` is a server, which has one store.
    """
    if names and (url := address(root)).startswith(("http://", "https://")):
        raise UsageError(
            without_secrets(url),
            "is one store, and --tokens needs one for each tenant",
            "name a directory or a bucket with --store",
        )
    tenants = {}
    for name in names or [""]:
        store = open_store(root / "tenants" / name if name else root)
        quota = Quota(local_part(store), quotas[name]) if name in quotas else None
        tenants[name] = Tenant(name, store, PrefixIndex(store, raw_of(model.fingerprint)), quota)
    return tenants


def local_part(store: Store) -> LocalStore:
    """The store itself if it is in a directory, or else its cache on this machine."""
    return store.cache if isinstance(store, RemoteStore) else writable(store)
