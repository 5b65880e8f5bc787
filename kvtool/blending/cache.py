"""A blended cache, which knows what it was made from and can be stored."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kvtool.artifact.write import raw_content
from kvtool.blending.layout import Layout
from kvtool.blending.record import SOURCE, BlendRecord
from kvtool.engines.cache import DocumentCache
from kvtool.engines.kv import slice_kv
from kvtool.errors import StoreError, UsageError
from kvtool.model.model import Model
from kvtool.store.base import Store
from kvtool.store.local import writable
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
        in parallel or pruned.
        """
        if self.parallel:
            raise kept_side_by_side(name, self.made["policy"])
        store = writable(store)
        store.check_name(name)
        if name in store and not replace:
            raise StoreError(
                name, "is in the store already", "choose another name, or remove it first (kvtool rm)"
            )
        like = store[self.layout.segments[-1].document]
        prefix = store.prefix(like.name, model)
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
            store.commit(document)
        return document


def made_entry(layout: Layout, made: Mapping[str, Any]) -> dict[str, Any] | None:
    """The entry ``made`` of a blend's artifact, part of its identity; None for what a prefill of its tokens gives."""
    return {"blended": [segment.artifact.digest for segment in layout.segments], **made} if made else None


def kept_side_by_side(name: str, policy: str) -> UsageError:
    """The error for a blend whose documents do not stand one after the other."""
    return UsageError(name, f"policy {policy!r} leaves documents side by side, which cannot be kept")
