"""Input embeddings of models, which a calibration names by their content and does not hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import Tensor

from kvtool.codecs.errors import CodecError

Find: TypeAlias = Callable[[str], "Tensor | None"]
"""Gives the embedding [vocabulary, width] of a digest, in any float dtype, or None if it has none."""

_finders: list[Find] = []


def provide(find: Find) -> None:
    """Asks ``find`` for embeddings from now on, after those that were provided before."""
    _finders.append(find)


def embedding(digest: str, label: str) -> Tensor:
    """The embedding [vocabulary, width] of that digest. Raises CodecError, which begins with ``label``, if nobody has it."""
    for find in _finders:
        found = find(digest)
        if found is not None:
            return found
    raise CodecError(
        f"{label}: needs the input embedding of its model (digest {digest[:12]}…), and no model with it was used on this "
        "machine; run any kvtool command with --model first"
    )
