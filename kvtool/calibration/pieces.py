"""Pieces of documents that a calibration is made from, drawn evenly over kinds, documents and segments."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import pairwise, zip_longest
from pathlib import PurePosixPath
from typing import TypeVar

from kvtool.artifact.load import refuse_mismatch
from kvtool.model.chat_template import Prefix, document_tokens, prefix_of
from kvtool.model.model import Model
from kvtool.store.base import Store
from kvtool.store.manifest import RAW, Document

PIECE_TOKENS = 1024
"""The most tokens of a piece: as many as memory for gradients allows, and enough for most of what attention does."""

SHORTEST = 64
"""The fewest tokens of a piece that is cut off at the end. Fewer are mostly beginning."""

T = TypeVar("T")


@dataclass(frozen=True)
class Piece:
    """``token_ids`` of the document called ``source``, which the model runs after ``prefix``.

    ``from_sample``: it is a text that comes with kvtool.
    """

    source: str
    prefix: Prefix
    token_ids: tuple[int, ...]
    from_sample: bool = False

    @property
    def prefix_ids(self) -> tuple[int, ...]:
        return self.prefix.token_ids


def pieces_of_store(
    store: Store, names: Sequence[str] | None, model: Model, tokens: int, seed: int = 0
) -> list[Piece]:
    """Up to ``tokens`` tokens of the raw segments of ``names``, by default of all documents of ``model``.

    Each piece has its own document's prefix. A store and a seed always give the same pieces. What several documents have in
    common counts once. Raises ``MismatchError`` for a document of another model that is named, or if there are only such.
    """
    documents = [store[name] for name in (store if names is None else names)]
    usable = [document for document in documents if document.model["fingerprint"] == model.fingerprint]
    if len(usable) < len(documents) and (names is not None or not usable):
        other = next(document for document in documents if document not in usable)
        refuse_mismatch(store.open(other.name), model)
    places: dict[str, list[tuple[Document, int, range]]] = {}
    seen: set[str] = set()
    for document in usable:
        for index, segment in enumerate(document.segments):
            if segment.identity not in seen:
                seen.add(segment.identity)
                cuts = ((document, index, tokens) for tokens in _cut(segment.n_tokens))
                places.setdefault(document.name, []).extend(cuts)

    @cache
    def prefix(name: str) -> Prefix:
        return store.prefix(name, model)

    def read(place: tuple[Document, int, range]) -> Piece:
        document, index, cut = place
        token_ids = store.open(document.name, RAW, index).token_ids[cut.start : cut.stop].tolist()
        return Piece(document.name, prefix(document.name), tuple(token_ids))

    return _limit(map(read, _spread(places, seed)), tokens)


def pieces_of_texts(
    texts: Sequence[str], store: Store, model: Model, tokens: int, seed: int = 0
) -> list[Piece]:
    """Up to ``tokens`` tokens of ``texts``.

    Their prefix is that of the store's first document of ``model``, or else the one that prefill gives documents.
    """
    names = (
        document.name for document in store.values() if document.model["fingerprint"] == model.fingerprint
    )
    name = next(names, None)
    prefix = prefix_of(model) if name is None else store.prefix(name, model)
    pieces: dict[str, list[Piece]] = {}
    for number, text in enumerate(texts):
        token_ids = document_tokens(model, text)
        pieces[f"{number:06d}"] = [
            Piece(f"text {number}", prefix, tuple(token_ids[cut.start : cut.stop]))
            for cut in _cut(len(token_ids))
        ]
    return _limit(_spread(pieces, seed), tokens)


def _cut(n_tokens: int) -> list[range]:
    """Pieces of a segment, equal up to a token."""
    count = -(-n_tokens // PIECE_TOKENS)
    edges = [n_tokens * n // max(count, 1) for n in range(count + 1)]
    return [range(start, end) for start, end in pairwise(edges)]


def _spread(by_document: dict[str, list[T]], seed: int) -> Iterator[T]:
    """All pieces, in an order whose every beginning is spread over kinds and documents.

    Kinds of document, by the ends of their names, take turns; so do the documents of a kind, each giving one piece
    in a round.
    """
    draw = random.Random(seed)
    kinds: dict[str, list[list[T]]] = {}
    for name, pieces in by_document.items():
        shuffled = list(pieces)
        draw.shuffle(shuffled)
        kinds.setdefault(PurePosixPath(name).suffix.lower(), []).append(shuffled)
    turns = []
    for documents in kinds.values():
        draw.shuffle(documents)
        turns.append(in_turn(documents))
    return in_turn(turns)


def in_turn(rows: Sequence[Sequence[T] | Iterator[T]]) -> Iterator[T]:
    """The first entry of every row, then the second of those that have one, and so on."""
    nothing = object()
    for row in zip_longest(*rows, fillvalue=nothing):
        yield from (entry for entry in row if entry is not nothing)  # type: ignore[misc]


def split_off(pieces: Sequence[Piece], tokens: int) -> tuple[list[Piece], list[Piece]]:
    """All pieces but their last ``tokens`` tokens, and pieces of these."""
    kept = sum(len(piece.token_ids) for piece in pieces) - tokens
    first = _limit(iter(pieces), kept) if kept > 0 else []
    rest: list[Piece] = []
    for piece in pieces:
        if after := piece.token_ids[max(kept, 0) :]:
            rest.append(replace(piece, token_ids=after))
        kept -= len(piece.token_ids)
    return first, rest


def _limit(pieces: Iterator[Piece], tokens: int) -> list[Piece]:
    """The first pieces with ``tokens`` tokens in all, the last one cut off."""
    limited: list[Piece] = []
    remaining = tokens
    for piece in pieces:
        # The end of a calibration is not worth a pass over a few tokens.
        if limited and remaining < min(SHORTEST, len(piece.token_ids)):
            break
        limited.append(replace(piece, token_ids=piece.token_ids[:remaining]))
        remaining -= len(limited[-1].token_ids)
        if not remaining:
            break
    return limited
