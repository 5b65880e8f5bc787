"""A document alone, of which only what a question needs is read."""

from __future__ import annotations

from dataclasses import dataclass

from kvtool.artifact.paged_cache import PagedCache, paged_cache, refuse_unbounded
from kvtool.blending.layout import Layout
from kvtool.engines.cache import DocumentCache
from kvtool.errors import UsageError
from kvtool.model.model import Model


@dataclass(frozen=True)
class Read:
    """Bytes that were read of a document's artifacts, and the bytes of these."""

    nbytes: int
    stored_nbytes: int


def check_share(share: float) -> None:
    """Raises ``UsageError`` for what is no share of a document."""
    if not 0 < share <= 1:
        raise UsageError(f"read {share:g}", "is no share of a document", "expected a number above 0, up to 1")


def refuse_unreadable(layout: Layout, model: Model) -> None:
    """Raises ``UsageError`` for more than one segment, and as ``paged_cache`` does."""
    if len(layout.variants) != 1 or not layout.is_alone:
        several = len(layout.documents) > 1
        reason = "are several documents" if several else "is in several segments"
        remedy = "name one document" if several else "name one of its segments, as with --segment 0"
        names = ", ".join(layout.documents)
        raise UsageError(names, f"{reason}, and pages are read of one", f"{remedy}, or ask without --read")
    refuse_unbounded(layout.segments[-1].artifact, model)


def open_pages(layout: Layout, model: Model, share: float) -> PagedCache:
    """The cache of ``layout``, which reads ``share`` of the document's pages while the model runs over the question."""
    return paged_cache([segment.artifact for segment in layout.segments], model, share)


def read_of(cache: DocumentCache | None) -> Read | None:
    """What was read for ``cache``, where that was a part of what is stored."""
    return Read(cache.read_nbytes, cache.stored_nbytes) if isinstance(cache, PagedCache) else None
