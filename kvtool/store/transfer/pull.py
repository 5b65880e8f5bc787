"""Documents of a remote store → a local store."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from kvtool.errors import UsageError
from kvtool.store.base import Store
from kvtool.store.local import LocalStore
from kvtool.store.remote import RemoteStore
from kvtool.store.transfer.to_directory import ToDirectory
from kvtool.store.transfer.transfer import Report, transfer


def pull(
    source: Store,
    store: Store,
    names: Sequence[str] | None = None,
    *,
    variant: str | None = None,
    replace: bool = False,
    decrypt: bool = False,
    dry_run: bool = False,
    on_progress: Callable[[Report], None] = lambda _: None,
) -> Report:
    """Copies documents of a server or a bucket as ``transfer`` does; ``replace`` those that ``store`` has otherwise.

    Raises ``UsageError`` if ``source`` is neither, ``StoreError`` if it cannot be asked what it has.
    """
    if not isinstance(source, RemoteStore):
        expected = "expected http://HOST:PORT or s3://BUCKET/PREFIX"
        raise UsageError(source, "is not a server or a bucket", expected)
    if not isinstance(store, LocalStore):
        raise UsageError(store, "is read only", "name a directory with --store")
    into = ToDirectory(store, replace)
    return transfer(
        source,
        into,
        names,
        variant=variant,
        overwrite=replace,
        decrypt=decrypt,
        dry_run=dry_run,
        on_progress=on_progress,
    )
