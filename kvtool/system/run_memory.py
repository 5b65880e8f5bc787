"""Remembers runs of commands that left nothing to do, so that the same run again need not load torch or a model.

A run is told by its inputs: whoever remembers it names all that its outcome depends on. The code is added here.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from kvtool.digest import digest
from kvtool.errors import StoreError
from kvtool.system.cache_dir import cache_dir
from kvtool.system.files import write_atomic

KEPT = 1000
"""Runs that are remembered, the latest."""


def recall(command: Mapping[str, Any], inputs: Mapping[str, Any]) -> dict[str, Any] | None:
    """The outcome of the last run of ``command``, if its inputs were ``inputs`` and the code was today's."""
    try:
        run = json.loads(_path(command).read_bytes())
        return dict(run["outcome"]) if run["inputs"] == _digest(inputs) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remember(command: Mapping[str, Any], inputs: Mapping[str, Any], outcome: Mapping[str, Any]) -> None:
    """Keeps a run, in the place of the command's last one. All three are JSON."""
    # An unwritable cache directory costs time on the next run, nothing else; so does what another process has removed.
    with suppress(StoreError, OSError):
        path, run = _path(command), {"inputs": _digest(inputs), "outcome": dict(outcome)}
        # In the order that the outcome has, in which it will be printed.
        write_atomic(path, [json.dumps(run).encode()])
        runs = list(path.parent.glob("*.json"))
        if len(runs) > KEPT:
            runs.sort(key=lambda file: file.stat().st_mtime_ns)
            for file in runs[:-KEPT]:
                file.unlink(missing_ok=True)


def _path(command: Mapping[str, Any]) -> Path:
    return cache_dir() / "runs" / f"{_digest_of(dict(command))}.json"


def _digest(inputs: Mapping[str, Any]) -> str:
    return _digest_of({"inputs": dict(inputs), "code": _code()})


def _digest_of(value: Any) -> str:
    # Escaped, since paths need not be UTF-8.
    return digest(json.dumps(value, sort_keys=True).encode())


def _code() -> list[Any]:
    """What differs once kvtool, an installed package, such as a plugin or a library's library, or Python has been changed."""
    packages = {file for folder in sys.path for file in Path(folder).glob("*.dist-info")}
    # Who works on kvtool changes files, and no version.
    here = Path(__file__).resolve().parents[1]
    # codecs and kernels may be links, which rglob does not follow.
    files = {file for folder in (here, here / "codecs", here / "kernels") for file in folder.rglob("*.py")}
    states = ([str(file), file.stat().st_size, file.stat().st_mtime_ns] for file in files | packages)
    return [sys.version, sorted(states)]
