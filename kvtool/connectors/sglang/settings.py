"""What an operator sets, under "kvtool" in ``--hicache-storage-backend-extra-config``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from kvtool.errors import UsageError
from kvtool.limits import MIB

WHERE = "--hicache-storage-backend-extra-config"
_GIB = 1024 * MIB


@dataclass(frozen=True)
class Settings:
    """Where pages come from.

    ``store`` is a directory, a server's URL or a bucket; ``variant`` as in ``connectors.usable``. Decoded segments, those being
    loaded included, stay in ``memory_gib`` of memory, in each of SGLang's processes. There ``threads`` of them are loaded at
    once, and each is decoded by as many threads. What is not loaded ``max_load_seconds`` after it was asked for is a miss.
    """

    store: str
    variant: str | None = None
    memory_gib: float = 2.0
    max_load_seconds: float = 30.0
    threads: int = 2

    @property
    def memory(self) -> int:
        """Bytes for decoded segments."""
        return int(self.memory_gib * _GIB)

    @classmethod
    def of(cls, extra: Mapping[str, Any]) -> Settings:
        """Raises ``UsageError`` for a setting that is unknown, missing, or of another kind."""
        own = extra.get("kvtool")
        if not isinstance(own, Mapping) or "store" not in own:
            remedy = 'add "kvtool": {"store": a directory, http://HOST:PORT or s3://BUCKET}'
            raise UsageError(WHERE, "names no store", remedy)
        known = [field.name for field in fields(cls)]
        for name, value in own.items():
            if name not in known:
                raise UsageError(f"{WHERE}: kvtool.{name}", f"expected {', '.join(known)}")
            if not _fits(name, value):
                expected = {"store": "an address", "variant": "a variant's name"}
                reason = f"expected {expected.get(name, 'a number above 0')}"
                raise UsageError(f"{WHERE}: kvtool.{name} {value!r}", reason)
        return cls(**own)


def _fits(name: str, value: object) -> bool:
    if name in ("store", "variant"):
        return isinstance(value, str) and value != ""
    if isinstance(value, bool) or not isinstance(value, int if name == "threads" else (int, float)):
        return False
    return value > 0
