"""A store in a bucket, to be written to: it is written in its cache on this machine, and what has changed is pushed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kvtool.store.backends.object_store import SCHEMES, ObjectStoreBackend
from kvtool.store.backends.writable import WritableFiles
from kvtool.store.base import Store
from kvtool.store.layout import address, manifest_file, scheme
from kvtool.store.local import LocalStore, writable
from kvtool.store.manifest import Document, Variant
from kvtool.store.open import open_store
from kvtool.store.remote import RemoteStore
from kvtool.store.transfer.to_files import ToFiles
from kvtool.store.transfer.transfer import Report, transfer


def open_new_store(root: str | Path) -> Store:
    """The store at an address, which may be a bucket or a directory where there is none yet."""
    if scheme(root) in SCHEMES:
        return RemoteStore(root, ObjectStoreBackend(address(root), new=True))
    return open_store(root)


@contextmanager
def working_copy(
    store: Store, read: Callable[[Document], list[Variant]] = lambda document: []
) -> Iterator[LocalStore]:
    """``store`` itself if it is in a directory. The cache of one in a bucket, whose changes are pushed at the end.

    ``read`` says which artifacts of a document will be read: they are fetched first, and calibrations with them. Of two machines
    that change one document, neither loses a variant; one that has another text, model or prefix by then is an error. After an
    error nothing is pushed; a further run finds what was computed.

    Raises ``StoreError`` for a store that can only be read, and for the first document that could not be pushed.
    """
    if not (isinstance(store, RemoteStore) and isinstance(store.backend, WritableFiles)):
        yield writable(store)
        return
    local, before = store.cache, _fetched(store, read)
    if store.encrypted_with:
        local.encrypt_with(store.encrypted_with)
    # What the bucket does not have any more must not come back. Its artifacts stay, and are found by whoever needs them.
    for name in set(local) - set(before):
        local.remove(name)
    yield local
    changed = [name for name in local if local.stored(name) != before.get(name)]
    replaced = {name for name in changed if before.get(name) == _current(store.backend, name)}
    for overwrite in (True, False):
        names = [name for name in changed if (name in replaced) == overwrite]
        into = ToFiles(store.backend)
        report = transfer(
            local, into, names, variant=None, overwrite=overwrite, dry_run=False, on_progress=_ignored
        )
        if report.problems:
            raise report.problems[0]


def _current(backend: WritableFiles, name: str) -> Document | None:
    found = backend.versioned(manifest_file(name))
    return found and Document.from_bytes(found[0], f"{backend.url}: {name}")


def _ignored(report: Report) -> None:
    """Progress that nobody looks at."""


def _fetched(store: RemoteStore, read: Callable[[Document], list[Variant]]) -> dict[str, Document]:
    """All documents, whose manifests are in the cache from here on, and of each what is needed."""
    documents = {name: store[name] for name in store}
    for document in documents.values():
        for variant in document.artifacts:
            for digest in variant.calibrations:
                store.locate_calibration(digest)
        for variant in read(document):
            store.open_artifact(variant)
    return documents
