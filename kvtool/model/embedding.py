"""Input embeddings of models that were used on this machine, found by their content for calibrations that name them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from kvtool.digest import canonical_json
from kvtool.errors import KvtoolError, StoreError
from kvtool.model.fingerprint import file_tensors
from kvtool.system.cache_dir import cache_dir
from kvtool.system.files import write_atomic

_FLOATS = ("F32", "F16", "BF16")

_known: dict[str, tuple[Path, str]] = {}
"""File and tensor by digest, of this process: a cache directory may not be writable."""


def remember(path: Path, tensors: Mapping[str, Any], vocabulary: int) -> None:
    """Keeps where those of a file's ``tensors`` lie that may be an embedding of ``vocabulary`` tokens or more."""
    for name, (dtype, shape, digest) in tensors.items():
        if dtype in _FLOATS and len(shape) == 2 and shape[0] >= vocabulary > 0 and digest not in _known:
            _known[digest] = (path, name)
            place = canonical_json({"file": str(path), "tensor": name})
            # Where it cannot be kept, models are named anew in each process, nothing else.
            with suppress(StoreError, OSError):
                if not _record(digest).exists() or _record(digest).read_bytes() != place:
                    write_atomic(_record(digest), [place])


def digest_of(weight: Tensor) -> str | None:
    """The digest of a loaded embedding [vocabulary, width], if a remembered file holds the same numbers; else None."""
    for digest in list(_known):
        stored = find(digest)
        if stored is not None and stored.shape == weight.shape and torch.equal(stored.to(weight), weight):
            return digest
    return None


def find(digest: str) -> Tensor | None:
    """The embedding of that digest, read from its file as its rows are used. None if no file is known to have it still."""
    place = _known.get(digest)
    if place is None:
        try:
            record = json.loads(_record(digest).read_bytes())
            place = Path(record["file"]), str(record["tensor"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
    path, name = place
    with suppress(KvtoolError, OSError):
        if file_tensors(path).get(name, ["", [], ""])[2] == digest:
            _known[digest] = place
            with safe_open(path, framework="pt") as file:
                tensor: Tensor = file.get_tensor(name)
                return tensor
    return None


def _record(digest: str) -> Path:
    return cache_dir() / "embeddings" / f"{digest}.json"
