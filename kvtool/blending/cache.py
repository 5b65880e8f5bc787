"""A blended cache, which knows what it was made from and can be stored."""

from __future__ import annotations

from typing import Any

from kvtool.artifact.write import raw_content
from kvtool.blending.layout import Layout
from kvtool.engines.cache import DocumentCache
from kvtool.engines.kv import slice_kv
from kvtool.errors import StoreError, UsageError
from kvtool.model.model import Model
from kvtool.store.base import Store
from kvtool.store.local import writable
from kvtool.store.manifest import RAW, Segment
from kvtool.store.new_document import new_document


class BlendedCache(DocumentCache):
    """A ``DocumentCache`` of ``layout``.

    ``recomputed`` is the number of recomputed tokens. ``made`` says, as JSON, how they were chosen; it is empty where all
    tokens were recomputed.
    """

    def __init__(self, layout: Layout, n_layers: int, *, capacity: int = 0) -> None:
        super().__init__(n_layers, capacity=capacity, token_ids=layout.token_ids)
        self.layout, self.recomputed = layout, 0
        self.made: dict[str, Any] = {}

    def save(self, store: Store, name: str, model: Model) -> None:
        """Stores the blended documents as the document ``name`` of ``store``, which has them all.

        It is loaded and asked like any other, but never taken for a prefill of the same tokens, unless all were
        recomputed. Raises ``StoreError`` for a name that is taken, ``UsageError`` for documents encoded in parallel.
        """
        if self.parallel:
            raise UsageError(
                name, f"policy {self.made['policy']!r} leaves documents side by side, which cannot be kept"
            )
        store = writable(store)
        store.check_name(name)
        if name in store:
            raise StoreError(
                name, "is in the store already", "choose another name, or remove it first (kvtool rm)"
            )
        like = store[self.layout.segments[-1].document]
        prefix = store.prefix(like.name, model)
        start = self.layout.prefix_tokens
        ids = self.layout.token_ids[start:].tolist()
        kv = slice_kv(model, self, start, ids, start)
        source = {"document": name, "blended": list(self.layout.documents)}
        content = raw_content(kv, model, prefix, source, made=self._made_entry())
        with store.writing():
            segment = Segment(content.meta["identity"], len(ids), 0, 0, {RAW: store.put(content)})
            store.commit(new_document(name, "", model, prefix, like.prefix_artifact, (segment,)))

    def _made_entry(self) -> dict[str, Any] | None:
        if not self.made:
            return None
        return {"blended": [segment.artifact.digest for segment in self.layout.segments], **self.made}
