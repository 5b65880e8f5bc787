"""Opening a store by its address. Imports the classes that open one, so that ``Store(address)`` finds them."""

from __future__ import annotations

from pathlib import Path

from kvtool.store.base import Store, store_class
from kvtool.store.layout import refuse_missing
from kvtool.store.local import LocalStore
from kvtool.store.remote import RemoteStore

__all__ = ["LocalStore", "RemoteStore", "Store", "open_store"]


def open_store(address: str | Path, *, existing: bool = False) -> Store:
    """The store at a directory, ``http://HOST:PORT``, ``s3://BUCKET/PREFIX`` or another address, as ``Store(address)``.

    Raises ``UsageError`` for an address of no kind that is known, ``StoreError`` for a place that holds something else, and,
    where it must be an ``existing`` store, for a directory that does not exist.
    """
    if existing:
        refuse_missing(address)
    return store_class(address)(address)
