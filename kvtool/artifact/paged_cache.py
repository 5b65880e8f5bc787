"""A cache that reads of a document's artifact only what a question needs, while the model runs over the question."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from kvtool.artifact.load import refuse_gaps, refuse_mismatch
from kvtool.artifact.pages import PageReader, PartReader
from kvtool.artifact.read import Artifact
from kvtool.engines.cache import DocumentCache
from kvtool.engines.capabilities import attends_to_cached_keys
from kvtool.engines.paged import PagedLayer
from kvtool.engines.ragged import joined_layer
from kvtool.engines.transformers import windows
from kvtool.errors import MismatchError, ModelError

if TYPE_CHECKING:
    from kvtool.model.model import Model

WHOLE_LAYERS = 2
"""The first layers, which are read whole, as in Quest's code: they attend to everything alike."""


class PagedCache(DocumentCache):
    """A cache whose layers after the first ones are read in part, by ``readers``."""

    def __init__(self, n_layers: int, token_ids: torch.Tensor, readers: Sequence[PartReader]) -> None:
        super().__init__(n_layers, token_ids=token_ids)
        self.readers = readers

    @property
    def read_nbytes(self) -> int:
        """Bytes that have been read of the artifacts' files."""
        return sum(reader.nbytes for reader in self.readers)

    @property
    def stored_nbytes(self) -> int:
        """Bytes of the files."""
        return sum(reader.artifact.nbytes for reader in self.readers)


def paged_cache(parts: Sequence[Artifact], model: Model, share: float) -> PagedCache:
    """A cache of ``parts``, the last of which is read by pages: ``share`` of them, those that a question ranks first.

    What stands before it is read whole, and so are the first ``WHOLE_LAYERS``. Run the model within ``cache_attention``; the
    first pass decides what is read. Raises as ``load_cache`` does, ``MismatchError`` for an artifact that cannot be read by
    pages, and ``ModelError`` for a model of whose attention the bounds of keys say nothing.
    """
    for part in parts:
        refuse_mismatch(part, model)
    refuse_gaps(parts)
    *before, document = parts
    refuse_unbounded(document, model)
    token_ids = torch.cat([part.token_ids for part in parts])
    n_tokens, n_layers = len(token_ids), document.n_layers
    whole = min(WHOLE_LAYERS, n_layers)
    pages = PageReader(document, range(whole, n_layers))
    readers = [*map(PartReader, before), pages]
    cache = PagedCache(n_layers, token_ids, readers)
    placed = [reader.layers(range(n_layers)) for reader in readers[:-1]]
    first = pages.layers(range(whole))
    geometry = document.contents.geometry
    n_before = n_tokens - geometry.n_tokens
    for index, size in enumerate(geometry.layers):
        prefix = [layers[index] for layers in placed]
        if index < whole:
            cache.layers[index] = joined_layer([*prefix, first[index]], n_tokens)
            continue
        layer = PagedLayer(n_before, n_tokens, index, pages, share)
        layer.allocate(size.keys, size.values, geometry.dtype, torch.device("cpu"))
        for some in prefix:
            layer.place(some)
        cache.layers[index] = layer
    return cache


def refuse_unbounded(document: Artifact, model: Model) -> None:
    """Raises ``MismatchError`` and ``ModelError`` as ``paged_cache`` does."""
    if document.paged is None:
        is_pruned = document.contents.geometry.is_pruned
        reason = "has lost tokens" if is_pruned else "has no bounds of its pages"
        name = document.meta["source"].get("document", "DOCUMENT")
        remedy = f"run kvtool compress {name} --recipe quest, and ask with --variant quest"
        raise MismatchError(document.path, f"{reason}, so that parts of it cannot be read", remedy)
    if window := next(filter(None, windows(model)), None):
        reason = f"has layers that see the last {window} tokens alone, for which pages cannot be chosen"
        raise ModelError(model.name, reason, "ask without --read")
    if not attends_to_cached_keys(model):
        reason = (
            "makes the keys that it attends to from what its cache holds, so that their bounds are not known"
        )
        raise ModelError(model.name, reason, "ask without --read")
