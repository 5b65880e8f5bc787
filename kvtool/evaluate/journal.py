"""What was measured is kept, piece by piece, so that an interrupted evaluation goes on, and a wider one adds to it.

A measurement is found by all that it depends on. Times are not kept: they are ratios within one run.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..digest import Json, canonical_json, digest_json
from ..fs import write_atomic
from ..places import cache_dir

FORMAT = 1


def key(*parts: Json) -> str:
    """Of all that a measurement depends on, as JSON; the version of kvtool is always part of it."""
    return digest_json([FORMAT, version("kvtool"), *parts])


def recall(key: str) -> Any:
    """What was measured under ``key``, or None."""
    try:
        return json.loads(_path(key).read_bytes())
    except (OSError, ValueError, RecursionError):
        return None


def remember(key: str, measured: Json) -> None:
    """Raises ``StoreError`` if the cache directory cannot be written to: an evaluation takes long enough to be kept."""
    write_atomic(_path(key), [canonical_json(measured)])


def _path(key: str) -> Path:
    return cache_dir() / "evaluations" / key[:2] / f"{key}.json"
