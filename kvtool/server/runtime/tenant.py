"""Tenants: who has a token, and what is theirs alone."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from anyio import CapacityLimiter

from kvtool import limits
from kvtool.errors import UsageError
from kvtool.model.model import Model
from kvtool.server.runtime.prefix_index import PrefixIndex
from kvtool.store.backends.backend import without_secrets
from kvtool.store.base import Store
from kvtool.store.layout import address
from kvtool.store.open import open_store


@dataclass
class Tenant:
    """One tenant's store, and what is known of it.

    ``hits`` counts by name how often each document was answered from. ``uploads`` limits those at a time, each
    of which has one of ``upload_threads``.
    """

    name: str
    store: Store
    prefixes: PrefixIndex
    hits: Counter[str] = field(default_factory=Counter)
    uploads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(limits.UPLOADS))
    upload_threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(limits.UPLOADS))


def tenants_of(root: Path, names: Collection[str], model: Model) -> dict[str, Tenant]:
    """The store at ``root`` for everyone, or a store below it for each of ``names``.

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
    return {name: Tenant(name, store, PrefixIndex(store, model)) for name, store in stores.items()}
