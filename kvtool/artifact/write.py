"""Writing artifacts: KV, raw or encoded → tensors and metadata → the bytes of a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import blake3
import torch
from torch import Tensor

from kvtool.artifact.identity import (
    RAW,
    calibration_digests,
    compressed_identity,
    made_entry,
    segment_identity,
)
from kvtool.artifact.pages import page_digests
from kvtool.artifact.read import FORMAT, Artifact, header_bytes, page_digests_name, runs
from kvtool.artifact.scores import in_8_bits, tensor_name
from kvtool.codecs import KV, Contents, Inputs, Pipeline
from kvtool.codecs.format import container
from kvtool.codecs.format.paged import Paged
from kvtool.codecs.format.pruned import Segment, pruned
from kvtool.codecs.spec import TOKEN_IDS
from kvtool.digest import digest, digest_token_ids

if TYPE_CHECKING:
    from kvtool.model.chat_template import Prefix
    from kvtool.model.model import Model


@dataclass(frozen=True)
class Content:
    """The content of an artifact: tensors in file order, and metadata without digests."""

    tensors: Mapping[str, Tensor]
    meta: Mapping[str, Any]


def raw_content(
    kv: KV,
    model: Model,
    prefix: Prefix,
    source: Mapping[str, Any],
    *,
    made: Mapping[str, Any] | None = None,
    scores: Mapping[str, Tensor] | None = None,
) -> Content:
    """The KV of one segment, uncompressed. ``source`` says where the tokens came from.

    ``made`` says how the KV came about if it is not the exact one; ``scores`` are of ``SCORES``.
    """
    about = {"digest": prefix.digest, "tokens": len(prefix.token_ids)}
    return _content(kv, model, about, source, made, scores)


def prefix_content(kv: KV, model: Model, prefix: Prefix) -> Content:
    """The exact KV of a prefix, which stands under no other."""
    return _content(kv, model, {"digest": digest_token_ids(()), "tokens": 0}, {"prefix": prefix.origin})


def _content(
    kv: KV,
    model: Model,
    prefix: Mapping[str, Any],
    source: Mapping[str, Any],
    made: Mapping[str, Any] | None = None,
    scores: Mapping[str, Tensor] | None = None,
) -> Content:
    contents = Contents.of(kv, RAW)
    tensors = {TOKEN_IDS: kv.token_ids.to(torch.int32)}
    tensors |= {tensor_name(name): in_8_bits(score) for name, score in (scores or {}).items()}
    for group in contents.groups:
        tensors |= contents.encode(group, [kv.layers[index] for index in group])
    ids = kv.token_ids.tolist()
    meta = {
        **contents.to_metadata(),
        "identity": segment_identity(model.fingerprint, prefix["digest"], ids, made=made),
        "model": {**model.identity.to_json(), "fingerprint": model.fingerprint},
        "prefix": dict(prefix),
        "token_digest": digest_token_ids(ids),
        "calibrations": calibration_digests(RAW),
        "source": dict(source),
        **made_entry(made),
        **({"scores": list(scores)} if scores else {}),
    }
    return Content(tensors, meta)


def compressed_content(original: Artifact, pipeline: Pipeline, inputs: Inputs | None = None) -> Content:
    """``original``, a raw artifact, encoded by ``pipeline``, or as suits it if it is far from the calibration.

    One group of layers is in memory at a time beside the result. ``inputs`` is what the pipeline needs.
    """
    ids, of = original.token_ids, original.contents
    whole = Contents(pipeline, of.geometry, of.start, of.rope)
    segment = pruned(Segment(whole, original.layer, inputs or {})).suited(ids)
    contents = segment.contents
    tensors = {TOKEN_IDS: ids.to(torch.int32)}
    tensors |= {tensor_name(name): original.read(tensor_name(name)) for name in original.scores}
    layers: dict[str, Tensor] = {}
    for group in contents.groups:
        layers |= segment.encode(group, ids)
    if paged := Paged.of(contents):
        for index in range(len(contents.geometry.layers)):
            tensors[page_digests_name(index)] = page_digests(paged, index, layers)
    tensors |= layers
    meta = {
        **original.meta,
        **contents.to_metadata(),
        "identity": compressed_identity(original.meta, pipeline),
        "calibrations": calibration_digests(pipeline),
        "source": {**original.meta["source"], "raw": original.digest},
    }
    return Content(tensors, {k: v for k, v in meta.items() if k not in ("digest", "tensors", "format")})


def serialize(content: Content) -> tuple[str, list[bytes | memoryview]]:
    """The digest of the whole, and the file's bytes in order. The tensors' memory is not copied."""
    placed = container.layout(container.entries(content.tensors))
    digests = {name: digest_tensor(tensor) for name, tensor in content.tensors.items()}
    meta = {**content.meta, "format": FORMAT, "tensors": digests}
    whole = digest(header_bytes(placed, meta))
    chunks: list[bytes | memoryview] = [header_bytes(placed, {**meta, "digest": whole})]
    for name, entry in placed.items():
        if name in content.tensors:
            chunks += runs(content.tensors[name])
        else:
            chunks.append(bytes(container.nbytes(entry)))
    return whole, chunks


def digest_tensor(tensor: Tensor) -> str:
    """Digest of the tensor's bytes, in order, little-endian; not of its shape or dtype."""
    hasher = blake3.blake3(max_threads=blake3.blake3.AUTO)
    for run in runs(tensor):
        hasher.update(run)
    return str(hasher.hexdigest())
