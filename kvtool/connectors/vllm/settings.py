"""What an operator sets, under ``kv_connector_extra_config``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from kvtool.errors import UsageError

WHERE = "kv_connector_extra_config"


_EXPECTED = {
    "store": "a directory, http://HOST:PORT or s3://BUCKET",
    "variant": "a variant's name",
    "max_load_seconds": "a number above 0",
}


def _is_count(value: object) -> bool:
    return type(value) is int and value > 0


_CHECKS: Mapping[str, Callable[[object], bool]] = {
    "store": lambda value: isinstance(value, str) and value != "",
    "variant": lambda value: value is None or isinstance(value, str),
    "max_load_seconds": lambda value: type(value) in (int, float) and float(str(value)) > 0,
}


@dataclass(frozen=True)
class Settings:
    """Where caches come from, and when they are loaded.

    ``store`` is a directory, a server's URL or a bucket; ``variant`` as in ``connectors.lookup``. A cache is loaded if it saves
    ``min_tokens`` from being prefilled. After ``max_load_seconds`` they are prefilled after all. ``threads`` read and decode, in
    each worker.
    """

    store: str
    variant: str | None = None
    min_tokens: int = 64
    max_load_seconds: float = 30.0
    threads: int = 2

    @classmethod
    def of(cls, extra: Mapping[str, Any]) -> Settings:
        """Raises ``UsageError`` for a setting that is unknown, missing, or of another kind."""
        known = [field.name for field in fields(cls)]
        for name, value in extra.items():
            if name not in known:
                raise UsageError(f"{WHERE}: {name}", f"expected {', '.join(known)}")
            if not _CHECKS.get(name, _is_count)(value):
                expected = _EXPECTED.get(name, "a whole number above 0")
                raise UsageError(f"{WHERE}: {name} {value!r}", f"expected {expected}")
        if "store" not in extra:
            raise UsageError(
                WHERE, "names no store", 'add "store": a directory, http://HOST:PORT or s3://BUCKET'
            )
        return cls(**extra)
