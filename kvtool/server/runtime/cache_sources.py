"""Where the cache of a prompt's first tokens comes from: the plan's part that ``cache_manager`` carries out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

from kvtool.artifact.read import Artifact
from kvtool.blending.blend import BlendOptions
from kvtool.blending.layout import Layout


@dataclass(frozen=True, kw_only=True)
class _Source:
    """A cache of the first ``tokens`` of a prompt.

    ``nbytes`` of memory are the request's alone, for its other tokens and its answers. ``documents`` are the names of those
    that the cache is made from.
    """

    tokens: int
    nbytes: int
    documents: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Uncached(_Source):
    """An empty cache with room for all ``prompt_tokens``."""

    prompt_tokens: int


@dataclass(frozen=True, kw_only=True)
class Stored(_Source):
    """One segment's artifacts, prefix first, which are loaded."""

    variant: str
    artifacts: Sequence[Artifact]


@dataclass(frozen=True, kw_only=True)
class Prefilled(_Source):
    """One segment, which is prefilled and then shared as a loaded one is. ``token_ids`` begin with its prefix."""

    identity: str
    token_ids: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Blended(_Source):
    """Several segments, some of whose tokens are recomputed. ``question`` are the tokens after them."""

    layout: Layout
    blending: BlendOptions
    question: Sequence[int]


CacheSource: TypeAlias = Uncached | Stored | Prefilled | Blended
