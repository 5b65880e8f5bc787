"""What one look-up in LMCache finds of a document, and whether the server's layout can hold it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from kvtool.artifact.read import Artifact
from kvtool.connectors.engine_model import EngineModel
from kvtool.connectors.lmcache.server_state import Layout
from kvtool.connectors.reading import steps
from kvtool.errors import MismatchError, StoreError
from kvtool.store.base import Store
from kvtool.store.headers import segment_headers
from kvtool.store.manifest import Document, Segment, Variant


@dataclass(frozen=True, eq=False)
class Piece:
    """A segment after its prefix: ``variants``, and ``parts``, their headers. LMCache takes its tokens in whole chunks."""

    document: str
    variants: Sequence[Variant]
    parts: Sequence[Artifact]
    chunk_size: int

    @classmethod
    def of(cls, store: Store, document: Document, segment: Segment, variant: str, chunk_size: int) -> Piece:
        """Raises ``StoreError`` for a variant that there is not, and for artifacts of another model than the manifest says."""
        if variant not in segment.variants:
            reason = f"has no variant {variant!r}, only {', '.join(segment.variants)}"
            raise StoreError(document.name, reason, "kvtool ls shows those of every document")
        parts = segment_headers(store, document, segment, variant)
        return cls(document.name, document.artifacts_of(segment, variant), parts, chunk_size)

    @cached_property
    def token_ids(self) -> list[int]:
        return [int(token) for part in self.parts for token in part.token_ids]

    @property
    def n_tokens(self) -> int:
        """Those in whole chunks."""
        return len(self.token_ids) // self.chunk_size * self.chunk_size

    @property
    def nbytes(self) -> int:
        geometry = self.parts[0].contents.geometry
        return (
            self.n_tokens * sum(layer.token_elements for layer in geometry.layers) * geometry.dtype.itemsize
        )

    def kv(self, store: Store) -> Tensor:
        """``[2, L, T, H · D]`` of the tokens in whole chunks. Raises ``KvtoolError`` for bytes that are not what was written."""
        sizes = self.parts[0].contents.geometry
        heads, channels = sizes.layers[0].keys
        kv = torch.empty(2, len(sizes.layers), self.n_tokens, heads * channels, dtype=sizes.dtype)
        for step in steps([store.open_artifact(variant) for variant in self.variants], range(self.n_tokens)):
            for span in step.spans():
                for plane, side in zip(kv, (span.keys, span.values), strict=True):
                    plane[span.layer, span.start : span.stop] = side.transpose(0, 1).flatten(1)
        return kv

    def refuse_unfit(self, layout: Layout) -> None:
        """Raises ``MismatchError``, naming the field, for a cache that ``layout`` cannot hold, or that no prefill gives."""
        for part in self.parts:
            if not part.is_exact:
                reason = "is not what a prefill of its tokens gives, as LMCache's engines would take it to be"
                raise MismatchError(
                    self.document, reason, "push documents that were prefilled, not blends or averages"
                )
            if difference := _difference(part, layout):
                remedy = "prefill it with the model that is served, in its dtype"
                raise MismatchError(self.document, f"{difference} of {layout.model} in LMCache", remedy)
        # Refuses what has lost tokens, and parts that do not follow each other.
        steps(self.parts, range(self.n_tokens))


def refuse_other_model(document: str, made_by: Mapping[str, Any], name: str, layout: Layout) -> None:
    """Raises ``MismatchError``, naming the field, if the engine serves a directory of this machine that holds another model.

    ``made_by`` is what the document's artifacts have under "model". Of a hub id nobody knows which revision an engine loaded.
    """
    directory = Path(layout.model)
    if not directory.is_absolute() or not (directory / "config.json").is_file():
        return
    if difference := EngineModel.at(directory, dtype=layout.dtype).difference(made_by, name):
        raise MismatchError(
            document, f"was made by another model: {difference}", "prefill it with the model that is served"
        )


def _difference(part: Artifact, layout: Layout) -> str:
    """What the cache has otherwise than ``layout``, in words; empty where they agree."""
    geometry, shape = part.contents.geometry, (layout.heads, layout.channels)
    if part.n_layers != layout.layers:
        return f"has {part.n_layers} layers, not the {layout.layers}"
    if (dtype := str(geometry.dtype).removeprefix("torch.")) != layout.dtype:
        return f"is of {dtype}, not the {layout.dtype}"
    for index, layer in enumerate(geometry.layers):
        for side, held in (("keys", layer.keys), ("values", layer.values)):
            if held != shape:
                return (
                    f"has {side} of {held[0]} x {held[1]} in layer {index}, not the {shape[0]} x {shape[1]}"
                )
    return ""
