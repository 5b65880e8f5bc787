"""Documents as LMCache takes them."""

from __future__ import annotations

from kvtool.connectors.lmcache.piece import Piece
from kvtool.store.local import LocalStore


def piece_of(store: LocalStore, name: str, variant: str = "raw", *, chunk: int) -> Piece:
    """The one segment of a document."""
    document = store[name]
    (segment,) = document.segments
    return Piece.of(store, document, segment, variant, chunk)
