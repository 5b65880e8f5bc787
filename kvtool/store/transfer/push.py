"""Documents of a store → a bucket, a server, or another directory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import unquote

from kvtool.errors import UsageError
from kvtool.store.backends.http import HttpBackend
from kvtool.store.backends.object_store import SCHEMES, ObjectStoreBackend
from kvtool.store.base import Store
from kvtool.store.layout import address, scheme
from kvtool.store.local import LocalStore
from kvtool.store.transfer.destination import Destination
from kvtool.store.transfer.to_directory import ToDirectory
from kvtool.store.transfer.to_files import ToFiles
from kvtool.store.transfer.to_server import ToServer
from kvtool.store.transfer.transfer import Report, transfer


def push(
    store: Store,
    to: str | Path,
    names: Sequence[str] | None = None,
    *,
    variant: str | None = None,
    replace: bool = False,
    decrypt: bool = False,
    dry_run: bool = False,
    on_progress: Callable[[Report], None] = lambda _: None,
) -> Report:
    """Copies documents to the store at the address ``to`` as ``transfer`` does; ``replace`` those that it has otherwise.

    It is made if there is none. Raises ``UsageError`` for an address that cannot be written to, ``StoreError`` for a bucket
    that may not be read or written, and for one that does not keep conditions.
    """
    into = destination(to, replace)
    return transfer(
        store,
        into,
        names,
        variant=variant,
        overwrite=replace,
        decrypt=decrypt,
        dry_run=dry_run,
        on_progress=on_progress,
    )


def refuse_unwritable(to: str | Path) -> None:
    """Raises ``UsageError`` for an address that no store can be written at."""
    kind = scheme(to)
    if kind == "file" and not address(to).startswith("file:///"):
        raise UsageError(f"store {to}", "expected file:///DIRECTORY, an absolute path")
    if kind not in ("", "file", "http", "https", *SCHEMES):
        expected = (
            f"expected a directory, s3://BUCKET/PREFIX, http://HOST:PORT, or another of {', '.join(SCHEMES)}"
        )
        raise UsageError(f"store {to}", "cannot be written to", expected)


def destination(to: str | Path, replace: bool = False) -> Destination:
    """The store at an address, to be written to."""
    refuse_unwritable(to)
    kind = scheme(to)
    if kind in SCHEMES:
        return ToFiles(ObjectStoreBackend(address(to), new=True))
    if kind in ("http", "https"):
        return ToServer(HttpBackend(address(to)))
    if kind == "file":
        return ToDirectory(LocalStore(unquote(address(to).removeprefix("file://"))), replace)
    return ToDirectory(LocalStore(to), replace)
