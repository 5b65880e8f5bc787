"""Who has a token, and what is theirs alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from anyio import CapacityLimiter

from kvtool import limits as bounds
from kvtool.errors import UsageError
from kvtool.model.model import Model
from kvtool.server.cached_contents.store import Contents
from kvtool.server.runtime.prefix_index import Prefixes
from kvtool.store.backends.backend import without_secrets
from kvtool.store.base import Store
from kvtool.store.layout import address
from kvtool.store.local import LocalStore, writable
from kvtool.store.open import open_store
from kvtool.store.remote import RemoteStore


@dataclass
class Tenant:
    """``hits`` are the times that each document was answered from."""

    name: str
    store: Store
    prefixes: Prefixes
    contents: Contents
    hits: Counter[str] = field(default_factory=Counter)
    uploads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(bounds.UPLOADS))


def tenants_of(root: Path, names: Collection[str], model: Model) -> dict[str, Tenant]:
    """The store at ``root`` for everyone, or for each of ``names`` one of their own below it.

    Raises ``UsageError`` for ``names`` if ``root`` is a server, which has one store.
    """
    if names and (url := address(root)).startswith(("http://", "https://")):
        raise UsageError(
            without_secrets(url),
            "is one store, and --tokens needs one for each tenant",
            "name a directory or a bucket with --store",
        )
    roots = {name: root / "tenants" / name for name in names} or {"": root}
    stores = {name: open_store(path) for name, path in roots.items()}
    return {
        name: Tenant(name, store, Prefixes(store, model), Contents(_records_in(store)))
        for name, store in stores.items()
    }


def _records_in(store: Store) -> LocalStore:
    """Where cached contents are kept: of a remote store in its cache, though none are made there."""
    return store.cache if isinstance(store, RemoteStore) else writable(store)
