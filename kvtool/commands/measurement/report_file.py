"""Files that a command writes its report to."""

from __future__ import annotations

import os
from pathlib import Path

from kvtool.errors import UsageError


def check(option: str, path: Path, replace: bool) -> None:
    """Raises ``UsageError`` unless ``option`` names a file that can be written, before what takes long."""
    subject = f"{option} {path}"
    if path.exists() and not replace:
        raise UsageError(subject, "is there already", "give another name, or --replace it")
    if path.is_dir() or not path.parent.is_dir():
        reason = f"{path} is a directory" if path.is_dir() else f"{path.parent} is no directory"
        raise UsageError(subject, reason, "name a file in an existing directory")
    if not os.access(path.parent, os.W_OK):
        raise UsageError(subject, f"{path.parent} cannot be written to", "name another directory")
