"""A blended cache, which knows what it was made from and can be stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvtool.artifact.write import raw_content
from kvtool.blending.layout import Layout
from kvtool.blending.record import SOURCE, BlendRecord, sources_of
from kvtool.engines.cache import DocumentCache
from kvtool.engines.kv import slice_kv
from kvtool.errors import StoreError, UsageError
from kvtool.model.model import Model
from kvtool.store.base import Store
from kvtool.store.local import LocalStore, writable
from kvtool.store.manifest import RAW, Document, Segment
from kvtool.store.new_document import new_document


class BlendedCache(DocumentCache):
    """A ``DocumentCache`` of ``layout``.

    ``recomputed`` is the number of recomputed tokens. ``made`` says, as JSON, how they were chosen; it is empty where all
    tokens were recomputed. ``record`` says what was blended; ``kvtool.blend`` sets it.
    """

    def __init__(self, layout: Layout, n_layers: int, *, capacity: int = 0) -> None:
        super().__init__(n_layers, capacity=capacity, token_ids=layout.token_ids)
        self.layout, self.recomputed = layout, 0
        self.made: dict[str, Any] = {}
        self.record: BlendRecord | None = None

    def save(self, store: Store, name: str, model: Model, *, replace: bool = False) -> Document:
        """Stores the blended documents as the document ``name`` of ``store``, which has them all, and returns its entry.

        It is loaded and asked like any other, but never taken for a prefill of the same tokens, unless all were
        recomputed. Raises ``StoreError`` for a name that is taken, unless ``replace``, and ``UsageError`` for documents encoded
        in parallel or pruned, and for the name of one of them.
        """
        store = writable(store)
        store.check_name(name)
        existing = store.get(name)
        if existing and not replace:
            raise StoreError(
                name, "is in the store already", "choose another name, or remove it first (kvtool rm)"
            )
        return self.save_over(existing, store, name, model)

    def save_over(self, existing: Document | None, store: LocalStore, name: str, model: Model) -> Document:
        """``save`` in the place of ``existing``. Raises ``StoreError`` if the store has something else of that name by now."""
        if self.parallel:
            raise kept_side_by_side(name, self.made["policy"])
        refuse_own_name(name, store, self.layout)
        like = store[self.layout.segments[-1].document]
        prefix = store.prefix(like.name, model)
        if prefix.digest != self.layout.segments[-1].artifact.meta["prefix"]["digest"]:
            raise StoreError(like.name, "was prefilled anew while it was blended", "blend again")
        start = self.layout.prefix_tokens
        ids = self.layout.token_ids[start:].tolist()
        kv = slice_kv(model, self, start, ids, start)
        source: dict[str, Any] = {"document": name}
        if self.record:
            source[SOURCE] = self.record.to_json()
        content = raw_content(kv, model, prefix, source, made=made_entry(self.layout, self.made))
        with store.writing():
            segment = Segment(content.meta["identity"], len(ids), 0, 0, {RAW: store.put(content)})
            document = new_document(name, "", model, prefix, like.prefix_artifact, (segment,))
            with store.changing():
                now = store.get(name)
                if _segments(now) not in (_segments(existing), _segments(document)):
                    raise StoreError(name, "was stored by another meanwhile", "look at it, and blend again")
                if now and _segments(now) == _segments(document):
                    # Of the same blend, with its compressed variants.
                    document = now.with_variant(0, RAW, segment.variants[RAW])
                store.commit(document)
        return document


def refuse_own_name(name: str, store: Store, layout: Layout) -> None:
    """Raises ``UsageError`` for a name under which the blend would replace what it is made of."""
    if name in sources_of(store, layout.documents):
        raise UsageError(name, "is one of the documents that are blended", "choose another name")


def _segments(document: Document | None) -> tuple[object, ...] | None:
    """What differs between a blend and what else may stand in its place; not the variants, which come and go."""
    if document is None:
        return None
    return document.text_digest, *(segment.identity for segment in document.segments)


def made_entry(layout: Layout, made: Mapping[str, Any]) -> dict[str, Any] | None:
    """The entry ``made`` of a blend's artifact, part of its identity; None for what a prefill of its tokens gives."""
    return {"blended": [segment.artifact.digest for segment in layout.segments], **made} if made else None


def kept_side_by_side(name: str, policy: str) -> UsageError:
    """The error for a blend whose documents do not stand one after the other."""
    return UsageError(name, f"policy {policy!r} leaves documents side by side, which cannot be kept")
