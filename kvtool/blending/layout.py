"""The layout of a blended prompt: prefix, cached segments, and plain text between them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeAlias

import torch
from torch import Tensor

from kvtool.artifact.load import refuse_mismatch
from kvtool.artifact.read import Artifact
from kvtool.counts import counted
from kvtool.digest import digest_token_ids
from kvtool.errors import MismatchError, UsageError
from kvtool.model.chat_template import document_tokens
from kvtool.model.model import Model
from kvtool.store.base import Store
from kvtool.store.manifest import RAW, Document, averaged_name, exact_name


@dataclass(frozen=True)
class Cached:
    """A document of the store: all its segments in order, or one of them, in one of its variants."""

    name: str
    variant: str | None = None
    segment: int | None = None


@dataclass(frozen=True)
class Text:
    """Plain text between documents, without a cache."""

    text: str


def chosen_document(store: Store, text: str, segment: int | None = None) -> Cached:
    """NAME or NAME@VARIANT. Raises ``StoreError``, with near names, for a document that is not in ``store``."""
    name, _, variant = text.rpartition("@")
    if text not in store and variant and name in store:
        return Cached(name, variant, segment)
    store[text]
    return Cached(text, None, segment)


Part: TypeAlias = "str | Cached | Text"


def listed(parts: str | Part | Iterable[Part]) -> list[Part]:
    """``parts`` as a list, also if it is only one."""
    return [parts] if isinstance(parts, (str, Cached, Text)) else list(parts)


@dataclass(frozen=True)
class Placed:
    """A cached segment whose tokens begin at index ``start`` of the prompt.

    ``position`` is that of its first token, where it is not ``start``. ``part`` counts what was laid out, from 0, and
    ``identity`` is the segment's, as its document's manifest has it; a prefix is no part.
    """

    document: str
    variant: str
    artifact: Artifact
    start: int
    position: int | None = None
    part: int | None = None
    identity: str = ""

    @property
    def stop(self) -> int:
        return self.start + len(self.artifact.token_ids)

    @property
    def moved(self) -> int:
        """By how many positions it stands after the one it was prefilled at."""
        return (self.start if self.position is None else self.position) - self.prefilled

    @property
    def prefilled(self) -> int:
        """The position it was prefilled at."""
        start = self.artifact.contents.start
        assert start is not None
        return start


@dataclass(frozen=True)
class Layout:
    """``token_ids`` [N] int64 are all tokens, prefix first, as a full prefill would see them.

    ``segments`` are in order, the prefix first if there is one. Between them is plain text.
    """

    token_ids: Tensor
    segments: tuple[Placed, ...]
    prefix_tokens: int

    @cached_property
    def cached(self) -> Tensor:
        """Whether a token has a cache; [N] bool."""
        cached = torch.zeros(len(self.token_ids), dtype=torch.bool)
        for segment in self.segments:
            cached[segment.start : segment.stop] = True
        return cached

    @cached_property
    def exact(self) -> Tensor:
        """Whether a token's cache is right for its place: the tokens before it are those of its prefill; [N] bool."""
        exact = torch.zeros(len(self.token_ids), dtype=torch.bool)
        for segment in self.segments:
            if segment.artifact.is_exact and not segment.moved and exact[: segment.start].all():
                exact[segment.start : segment.stop] = True
        return exact

    @property
    def is_alone(self) -> bool:
        """Whether it is one segment at the place that it was prefilled at, after its prefix."""
        return bool(self.cached.all()) and not any(segment.moved for segment in self.segments)

    @property
    def pruned(self) -> tuple[str, ...]:
        """The names of documents, each once, that are not there with all their tokens."""
        segments = [segment for segment in self.segments if segment.artifact.contents.geometry.is_pruned]
        return tuple(dict.fromkeys(segment.document for segment in segments))

    @property
    def documents(self) -> tuple[str, ...]:
        """The documents' names, each once."""
        return tuple(dict.fromkeys(segment.document for segment in self.after_prefix))

    @property
    def variants(self) -> tuple[str, ...]:
        """The variant of each segment, without the prefix."""
        return tuple(segment.variant for segment in self.after_prefix)

    @property
    def after_prefix(self) -> list[Placed]:
        return [segment for segment in self.segments if segment.start >= self.prefix_tokens]

    @property
    def n_document_tokens(self) -> int:
        """The number of tokens of segments and the text between them."""
        return len(self.token_ids) - self.prefix_tokens

    def in_parallel(self) -> Layout:
        """The same tokens, with every segment at its distance from the prefix at prefill.

        All segments and the prefix are moved alike, so that the longest ends where the prompt does. A question then stands
        right after it, as transformers' ``generate`` has it.
        """
        ends = [segment.prefilled + segment.stop - segment.start for segment in self.segments]
        by = len(self.token_ids) - max(ends)
        segments = [replace(segment, position=segment.prefilled + by) for segment in self.segments]
        return replace(self, segments=tuple(segments))


def lay_out(
    store: Store,
    parts: str | Part | Iterable[Part],
    model: Model,
    *,
    variant: str = RAW,
    separator: str = "",
    prefix: Sequence[int] | None = None,
    refuse: Callable[[Artifact, Model], None] = refuse_mismatch,
) -> Layout:
    """The place of each of ``parts`` in one prompt; ``separator`` is a text between any two of them.

    ``variant`` is that of documents that name none. A moved segment is taken in the variant made for blending, if there is
    one. Where more follows, the first segment after its prefix is taken from its own cache even if that variant is named,
    unless the store does not have it: it is right there. ``prefix`` are tokens that stand in the place of the prefixes that
    the documents were prefilled under; they have no cache. ``refuse`` raises for an artifact that is not of the model: who
    wants the tokens alone need not ask for its weights. Raises ``StoreError`` for a document, variant or segment that the
    store does not have, ``MismatchError`` for one of another model or prefix, ``UsageError`` if there is none, or if all
    together are longer than the model's context.
    """
    is_moved = prefix is not None
    pieces = list(_pieces(store, listed(parts), model, variant, separator, is_moved=is_moved))
    segments = [piece for piece in pieces if isinstance(piece, Placed)]
    if not segments:
        raise UsageError("no document to blend", "name at least one of the store's (kvtool ls shows them)")
    for segment in segments:
        refuse(segment.artifact, model)
        _refuse_unplaced(segment)
    first = _shared_prefix(store, segments) if prefix is None else [list(prefix)]
    placed: list[Placed] = []
    ids: list[int] = []
    for piece in [*first, *pieces]:
        if isinstance(piece, Placed):
            placed.append(replace(piece, start=len(ids)))
            ids += piece.artifact.token_ids.tolist()
        else:
            ids += piece
    if len(ids) >= model.context:
        raise _too_long(store, segments, len(ids), model)
    n_prefix = sum(len(piece.artifact.token_ids if isinstance(piece, Placed) else piece) for piece in first)
    return Layout(torch.tensor(ids, dtype=torch.int64), tuple(placed), n_prefix)


def _pieces(
    store: Store, parts: Sequence[Part], model: Model, variant: str, separator: str, *, is_moved: bool
) -> Iterator[Placed | list[int]]:
    """Segments, not placed yet, and the tokens of texts."""
    gap = document_tokens(model, separator) if separator else []
    for n, part in enumerate(parts):
        if n and gap:
            yield gap
        if isinstance(part, Text):
            yield document_tokens(model, part.text)
            continue
        cached = Cached(part) if isinstance(part, str) else part
        document = store[cached.name]
        segments = range(len(document.segments)) if cached.segment is None else [cached.segment]
        for m, segment in enumerate(segments):
            chosen = cached.variant or variant
            if is_moved or n or m:
                # The variant made for blending is the better one everywhere but right after its prefix.
                better = cached.variant or averaged_name(exact_name(variant))
            elif len(parts) == len(segments) == 1:
                better = chosen
            else:
                better = exact_name(chosen)
            if better != chosen and _has(store, document, segment, better):
                chosen = better
            # All of one manifest: it may be replaced meanwhile.
            artifact = store.open_artifact(store.variant_of(document, segment, chosen))
            identity = document.segments[segment].identity
            yield Placed(cached.name, chosen, artifact, 0, part=n, identity=identity)


def _has(store: Store, document: Document, segment: int, variant: str) -> bool:
    if not 0 <= segment < len(document.segments):
        return False
    stored = document.segments[segment].variants.get(variant)
    return stored is not None and store.holds(stored)


def _too_long(store: Store, segments: Sequence[Placed], tokens: int, model: Model) -> UsageError:
    names = list(dict.fromkeys(segment.document for segment in segments))
    remedy = "name fewer or shorter documents"
    if len(names) == 1 and (count := len(store[names[0]].segments)) > 1:
        remedy += f", or one of its {count} segments (--segment 0 to {count - 1})"
    size = f"{'it is' if len(segments) == 1 else 'together they are'} {tokens:,} tokens long"
    reason = f"{size}, {model.name} has a context of {model.context:,}"
    return UsageError(", ".join(names), reason, remedy)


def _refuse_unplaced(segment: Placed) -> None:
    if segment.artifact.contents.start is None:
        raise MismatchError(
            segment.document,
            f"{segment.artifact.path} has tokens that are not at consecutive positions, so that their places in a prompt "
            "are not known",
            "name another variant of it",
        )


def _shared_prefix(store: Store, segments: Sequence[Placed]) -> list[Placed]:
    """The prefix that all of ``segments`` were prefilled under, as a segment; none if it is empty."""
    first = segments[0]
    for other in segments[1:]:
        expected, prefix = first.artifact.meta["prefix"], other.artifact.meta["prefix"]
        if expected["digest"] != prefix["digest"]:
            raise MismatchError(
                other.document,
                f"was prefilled under another prefix ({counted(prefix['tokens'], 'token')}, digest "
                f"{prefix['digest'][:12]}…) than {first.document} ({counted(expected['tokens'], 'token')}, "
                f"{expected['digest'][:12]}…)",
                "prefill both under the same",
            )
    variant = store[first.document].prefix_artifact
    segment = [] if variant is None else [Placed("the prefix", RAW, store.open_artifact(variant), 0)]
    ids = [token for placed in segment for token in placed.artifact.token_ids.tolist()]
    if digest_token_ids(ids) != first.artifact.meta["prefix"]["digest"]:
        raise MismatchError(
            first.document,
            "the store has another prefix for it than the one that it was prefilled under",
            "prefill it again with --replace",
        )
    return segment
