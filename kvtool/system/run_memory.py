"""Remembers runs of commands that left nothing to do, so that the same run again need not load torch or a model.

A run is told by its inputs: whoever remembers it names all that its outcome depends on. The code is added here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path
from typing import Any

from kvtool.digest import canonical_json, digest_json
from kvtool.errors import StoreError
from kvtool.system.cache_dir import cache_dir
from kvtool.system.files import write_atomic

_PLUGINS = ("kvtool.recipes", "kvtool.stages")


def recall(command: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The outcome of the last run of ``command``, if its inputs were ``inputs`` and the code was today's."""
    try:
        run = json.loads(_path(command).read_bytes())
        return dict(run["outcome"]) if run["inputs"] == _digest(inputs) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(command: Mapping[str, Any], inputs: Mapping[str, Any], outcome: Mapping[str, Any]) -> None:
    """Keeps a run, in the place of the command's last one. All three are JSON."""
    # An unwritable cache directory costs time on the next run, nothing else.
    with suppress(StoreError):
        write_atomic(_path(command), [canonical_json({"inputs": _digest(inputs), "outcome": dict(outcome)})])


def _path(command: Mapping[str, Any]) -> Path:
    return cache_dir() / "runs" / f"{digest_json(dict(command))}.json"


def _digest(inputs: Mapping[str, Any]) -> str:
    return digest_json({"inputs": dict(inputs), "code": _code()})


def _code() -> list[Any]:
    """What differs once kvtool, a library that it uses or a plugin has been changed."""
    required = [re.split(r"[^\w.-]", line, maxsplit=1)[0] for line in metadata.requires("kvtool") or ()]
    plugins = [point.dist for group in _PLUGINS for point in metadata.entry_points(group=group)]
    versions = {name: _version(name) for name in ("kvtool", *required)}
    versions |= {dist.name: dist.version for dist in plugins if dist is not None}
    # Who works on kvtool changes files, and no version.
    here = Path(__file__).resolve().parents[1]
    # codecs and kernels may be links, which rglob does not follow.
    files = {file for folder in (here, here / "codecs", here / "kernels") for file in folder.rglob("*.py")}
    states = sorted([str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files)
    return [versions, digest_json(states)]


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
