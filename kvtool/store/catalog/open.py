"""Opening a store's catalog by the store's address."""

from __future__ import annotations

from pathlib import Path

from kvtool.store.catalog.catalog import Catalog
from kvtool.store.catalog.local import LocalCatalog, read_only
from kvtool.store.catalog.remote import RemoteCatalog
from kvtool.store.layout import refuse_missing, scheme


def open_catalog(root: str | Path) -> Catalog:
    """The documents of the existing store that ``open_store`` opens there; raises the same errors."""
    refuse_missing(root)
    return RemoteCatalog(root) if scheme(root) else LocalCatalog(root)


def open_to_write(root: str | Path) -> LocalCatalog:
    """The same, to be written to. Raises ``StoreError`` for one that can only be read."""
    catalog = open_catalog(root)
    if not isinstance(catalog, LocalCatalog):
        raise read_only(catalog)
    return catalog
