"""What a calibration is made from: pieces of documents, drawn evenly, and their caches, computed when asked for."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise, zip_longest
from pathlib import PurePosixPath
from typing import TypeVar, overload

import torch
from torch import Tensor

from kvtool.artifact.load import refuse_mismatch
from kvtool.codecs import KV, LayerKV, Sample
from kvtool.codecs.float16 import saturated
from kvtool.engines.gradients import gradients
from kvtool.engines.prefiller import Prefiller
from kvtool.errors import UsageError
from kvtool.model.chat_template import document_tokens, prefix_again, prefix_of
from kvtool.model.model import Model
from kvtool.store.base import Store
from kvtool.store.manifest import RAW, Document

PIECE_TOKENS = 1024
"""Of a piece at most: what its gradients need of memory, and long enough for most of what attention does."""

SHORTEST = 64
"""Tokens of a piece that is not all of its segment; fewer are mostly beginning."""

SLOPED_TOKENS = 16_384
"""That gradients are computed for, about; what errors cost is soon known, and each takes as long as seven without."""

KEPT_BYTES = 8 << 30
"""Of all samples' keys and values together, in 16 bits, which wait in memory while a recipe goes over them."""

T = TypeVar("T")


@dataclass(frozen=True)
class Piece:
    """``token_ids`` of the document called ``source``, which are run behind ``prefix_ids``."""

    source: str
    prefix_ids: tuple[int, ...]
    token_ids: tuple[int, ...]


def pieces_of_store(
    store: Store, names: Sequence[str] | None, model: Model, tokens: int, seed: int = 0
) -> list[Piece]:
    """Up to ``tokens`` tokens of the raw segments of ``names``, by default of all documents of ``model``, each behind its
    own document's prefix. The same ones for a store and a seed; what several documents hold alike counts once.

    Raises MismatchError for a document of another model that is named, or if there are only such.
    """
    documents = [store[name] for name in (store if names is None else names)]
    own = [document for document in documents if document.model["fingerprint"] == model.fingerprint]
    if len(own) < len(documents) and (names is not None or not own):
        other = next(document for document in documents if document not in own)
        refuse_mismatch(store.open(other.name), model)
    places: dict[str, list[tuple[Document, int, range]]] = {}
    known: set[str] = set()
    for document in own:
        for index, segment in enumerate(document.segments):
            if segment.identity not in known:
                known.add(segment.identity)
                cut = ((document, index, piece) for piece in _cut(segment.n_tokens))
                places.setdefault(document.name, []).extend(cut)

    def read(place: tuple[Document, int, range]) -> Piece:
        document, index, piece = place
        prefix = document.prefix_artifact
        before = store.open_artifact(prefix).token_ids.tolist() if prefix else []
        token_ids = store.open(document.name, RAW, index).token_ids[piece.start : piece.stop].tolist()
        return Piece(document.name, tuple(before), tuple(token_ids))

    return _within(map(read, _spread(places, seed)), tokens)


def pieces_of_texts(
    texts: Sequence[str], store: Store, model: Model, tokens: int, seed: int = 0
) -> list[Piece]:
    """The same of ``texts``, behind the prefix of the store's first document of ``model``, or else the one that prefill
    gives documents."""
    origins = (store[name] for name in store)
    own = next((x.prefix["origin"] for x in origins if x.model["fingerprint"] == model.fingerprint), None)
    prefix = prefix_of(model) if own is None else prefix_again(model, dict(own))
    places: dict[str, list[Piece]] = {}
    for number, text in enumerate(texts):
        token_ids = document_tokens(model, text)
        places[f"{number:06d}"] = [
            Piece(f"text {number}", prefix.token_ids, tuple(token_ids[piece.start : piece.stop]))
            for piece in _cut(len(token_ids))
        ]
    return _within(_spread(places, seed), tokens)


class Samples(Sequence[Sample]):
    """The caches of ``pieces``, each computed when it is first asked for, then kept in 16 bits.

    Gradients, where they are wanted, come with the first ``SLOPED_TOKENS`` tokens, and the first time only.
    ``on_tokens`` is called with the tokens of each that was computed. Raises UsageError as soon as it is seen that all
    would take more than ``KEPT_BYTES``.
    """

    def __init__(
        self,
        pieces: Sequence[Piece],
        model: Model,
        with_gradients: bool,
        on_tokens: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.pieces, self.model, self.on_tokens = pieces, model, on_tokens
        before = accumulate((len(piece.token_ids) for piece in pieces), initial=0)
        self._sloped = [with_gradients and n < SLOPED_TOKENS for n in before]
        self._kept: dict[int, KV] = {}
        self._prefiller: Prefiller | None = None
        self._prefix_ids: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.pieces)

    @overload
    def __getitem__(self, index: int) -> Sample: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sample]: ...
    def __getitem__(self, index: int | slice) -> Sample | Sequence[Sample]:
        if isinstance(index, slice):
            return [self[number] for number in range(*index.indices(len(self)))]
        number = range(len(self))[index]
        if number in self._kept:
            return Sample(self._kept[number])
        sample = self._computed(self.pieces[number], self._sloped[number])
        self._refuse_too_many(sample.kv)
        self._kept[number] = _in_16_bits(sample.kv)
        self.on_tokens(sample.kv.n_tokens)
        return replace(sample, kv=self._kept[number])

    def _computed(self, piece: Piece, sloped: bool) -> Sample:
        if sloped:
            return gradients(self.model, piece.prefix_ids, piece.token_ids, tokens=PIECE_TOKENS)
        if self._prefiller is None or self._prefix_ids != piece.prefix_ids:
            self._prefiller, self._prefix_ids = Prefiller(self.model, piece.prefix_ids), piece.prefix_ids
        return Sample(self._prefiller.one(piece.token_ids))

    def _refuse_too_many(self, kv: KV) -> None:
        each = 2 * kv.n_elements / max(kv.n_tokens, 1)
        tokens = sum(len(piece.token_ids) for piece in self.pieces)
        if tokens * each > KEPT_BYTES:
            raise UsageError(
                "--tokens",
                (
                    f"{tokens} tokens of {self.model.name} take {tokens * each / 1000000000.0:.1f} GB while "
                    f"they are learned from, at most {KEPT_BYTES / 1000000000.0:.1f} are allowed"
                ),
                (
                    f"give {int(KEPT_BYTES / each)} or fewer to kvtool calibrate, or compress with --recipe "
                    "kivi, which needs no calibration"
                ),
            )


def _in_16_bits(kv: KV) -> KV:
    """A copy, so that a view does not keep a whole pass's memory."""

    def half(x: Tensor) -> Tensor:
        return saturated(x.float().clone(), torch.float16)

    layers = tuple(LayerKV(half(x.keys), half(x.values), x.positions) for x in kv.layers)
    return KV(layers, kv.token_ids, kv.rope)


def _cut(n_tokens: int) -> list[range]:
    """Pieces of a segment, equal up to a token."""
    count = -(-n_tokens // PIECE_TOKENS)
    edges = [n_tokens * n // max(count, 1) for n in range(count + 1)]
    return [range(start, end) for start, end in pairwise(edges)]


def _spread(places: dict[str, list[T]], seed: int) -> Iterator[T]:
    """The pieces of documents by name, in an order whose every beginning is spread over kinds and documents.

    Kinds of document, by the ends of their names, take turns; so do the documents of a kind, each giving one piece
    in a round.
    """
    draw = random.Random(seed)
    kinds: dict[str, list[list[T]]] = {}
    for name, pieces in places.items():
        shuffled = list(pieces)
        draw.shuffle(shuffled)
        kinds.setdefault(PurePosixPath(name).suffix.lower(), []).append(shuffled)
    turns = []
    for documents in kinds.values():
        draw.shuffle(documents)
        turns.append(_in_turn(documents))
    return _in_turn(turns)


def _in_turn(rows: Sequence[Sequence[T] | Iterator[T]]) -> Iterator[T]:
    nothing = object()
    for row in zip_longest(*rows, fillvalue=nothing):
        yield from (entry for entry in row if entry is not nothing)  # type: ignore[misc]


def _within(pieces: Iterator[Piece], tokens: int) -> list[Piece]:
    """The first of them, the last one cut."""
    found: list[Piece] = []
    left = tokens
    for piece in pieces:
        # The end of a calibration is not worth a pass over a few tokens.
        if found and left < min(SHORTEST, len(piece.token_ids)):
            break
        found.append(replace(piece, token_ids=piece.token_ids[:left]))
        left -= len(found[-1].token_ids)
        if not left:
            break
    return found
