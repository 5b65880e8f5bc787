"""The directory of what kvtool can build again: converted models, digests of large files, measured speeds."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """``$KVTOOL_CACHE_DIR``, else ``$XDG_CACHE_HOME/kvtool``, else ``~/.cache/kvtool``."""
    if explicit := os.environ.get("KVTOOL_CACHE_DIR"):
        return Path(explicit)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "kvtool"
