"""Where a store that is read only comes from: what ``RemoteStore`` asks of a server or of a bucket."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple, Protocol

from kvtool.errors import StoreError


class Unreachable(StoreError):
    """No answer came, or not the whole of it."""


class NotThere(StoreError):
    """There is no such thing."""


class Listed(NamedTuple):
    """``version`` changes when the manifest does, "" if that is not known; ``committed`` is in seconds since 1970."""

    version: str
    committed: float


class Source(Protocol):
    """What arrives is not trusted: who asked for it checks it.

    All methods raise ``StoreError``, naming the address and the remedy; ``NotThere`` and ``Unreachable`` where it is that.
    """

    url: str

    @property
    def key(self) -> str:
        """Tells sources apart, where different things may be seen under one URL."""

    def documents(self) -> Mapping[str, Listed]:
        """By name."""

    def manifest(self, name: str) -> bytes: ...

    def artifact(self, digest: str, nbytes: int) -> Iterator[bytes]:
        """Its bytes in pieces, ``nbytes`` at most."""

    def part(self, digest: str, start: int, stop: int) -> bytes:
        """An artifact's bytes from ``start`` up to ``stop``."""

    def calibration(self, digest: str) -> Iterator[bytes]: ...


def without_secrets(url: str) -> str:
    """To be shown: without a login, and without a query, which may be a signature."""
    return re.sub(r"[?#].*", "?…", re.sub(r"//.*@", "//…@", url, flags=re.DOTALL), flags=re.DOTALL)
