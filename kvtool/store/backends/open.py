"""The backend of an address, by its scheme."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from kvtool.errors import UsageError
from kvtool.store.backends.backend import Backend, without_secrets
from kvtool.store.backends.directory import DirectoryBackend
from kvtool.store.backends.http import HttpBackend
from kvtool.store.backends.object_store import SCHEMES, ObjectStoreBackend
from kvtool.store.layout import address, scheme

BACKENDS: Mapping[str, Callable[[str], Backend]] = {
    "http": HttpBackend,
    "https": HttpBackend,
    "file": DirectoryBackend,
    **dict.fromkeys(SCHEMES, ObjectStoreBackend),
}


def open_backend(root: str | Path) -> Backend:
    """Raises ``UsageError`` for an address of no kind that is known."""
    if scheme(root) not in BACKENDS:
        raise unknown_scheme(root, BACKENDS)
    return BACKENDS[scheme(root)](address(root))


def unknown_scheme(root: str | Path, known: Iterable[str]) -> UsageError:
    return UsageError(
        f"store {without_secrets(address(root))}",
        f"expected http://HOST:PORT, s3://BUCKET/PREFIX, another of {', '.join(sorted(filter(None, known)))}, "
        "or a directory",
    )
