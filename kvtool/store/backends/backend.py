"""The contract of backends: servers, buckets and directories that ``RemoteStore`` reads from.

A new kind of place is a class with these methods. ``backends/memory.py`` is the smallest one, ``kvtool.testing.backends``
has the tests that each must pass.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple, Protocol

from kvtool.errors import StoreError
from kvtool.store.layout import Marker


class Unreachable(StoreError):
    """No answer came, or not the whole of it. What was read before goes on being served."""


class NotThere(StoreError):
    """There is no such thing."""


class Listed(NamedTuple):
    """``version`` changes when the manifest does, "" if that is not known; ``committed`` is in seconds since 1970."""

    version: str
    committed: float


class Backend(Protocol):
    """Documents, artifacts and calibrations of one store. Methods are called from any thread.

    What arrives is not trusted: the caller checks it. All methods raise ``StoreError``, naming the address and the remedy:
    ``NotThere`` for what is missing, ``Unreachable`` while nothing answers.
    """

    url: str

    @property
    def key(self) -> str:
        """Name of the store's cache directory. Tells stores apart, also where different ones are seen under one URL."""

    @property
    def marker(self) -> Marker:
        """What the store says of itself, as far as its readers must know it."""

    def documents(self) -> Mapping[str, Listed]:
        """All documents, by name."""

    def manifest(self, name: str) -> bytes: ...

    def artifact(self, digest: str, nbytes: int) -> Iterator[bytes]:
        """Its file's bytes in pieces. Raises ``StoreError`` for more than ``nbytes``, before the surplus is handed out.

        In an encrypted store the file is sealed, and larger by that (``artifact.sealed``).
        """

    def parts(self, digest: str, ranges: Sequence[range]) -> Sequence[bytes]:
        """The file's bytes in each of ``ranges``, which are ascending and neither empty nor adjacent."""

    def calibration(self, digest: str) -> Iterator[bytes]: ...


def without_secrets(url: str) -> str:
    """``url`` as it may be shown: without a login, and without a query, which may be a signature."""
    return re.sub(r"[?#].*", "?…", re.sub(r"//.*@", "//…@", url, flags=re.DOTALL), flags=re.DOTALL)
