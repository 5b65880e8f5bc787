"""Artifacts → a transformers cache."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from kvtool.artifact.read import Artifact
from kvtool.codecs import Geometry
from kvtool.counts import counted
from kvtool.digest import digest_token_ids
from kvtool.engines.attention.cache_attention import refuse_unreadable
from kvtool.engines.cache import ROOM, BufferedLayer, DocumentCache
from kvtool.engines.ragged import PrunedLayer, new_layer
from kvtool.engines.transformers import device_of
from kvtool.errors import MismatchError
from kvtool.kernels.threads import thread_pool

if TYPE_CHECKING:  # Commands that load no cache do not pay for the import.
    from kvtool.model.model import Model

# Reading and hashing let go of the interpreter's lock; two threads keep up with memory.
_READERS = 2


def load_cache(parts: Sequence[Artifact], model: Model) -> DocumentCache:
    """A cache of ``parts``, one after the other at the positions they were prefilled at.

    Layers that any of them does not hold whole take no more memory than what the parts hold, which ``loaded_nbytes`` says
    ahead. Every byte is checked before the cache is handed out. Raises ``MismatchError``, naming the field, for an artifact of
    another model, or one that does not continue the one before it; ``ModelError`` for a pruned cache that the model's attention
    cannot read; ``ArtifactError`` for a broken one.
    """
    for part in parts:
        refuse_mismatch(part, model)
    refuse_gaps(parts)
    geometry = cache_geometry(parts)
    refuse_unreadable(model, geometry)
    token_ids = torch.cat([part.token_ids for part in parts])
    cache = DocumentCache(len(geometry.layers), token_ids=token_ids)
    # Here, not in the threads that fill them: memory that an earlier cache gave back is not given to other threads.
    device = _decoding_device(parts, model)
    cache.layers = [new_layer(size, len(token_ids), geometry.dtype, device) for size in geometry.layers]
    for part in parts:
        if len(part.contents.groups) == 1:
            _fill(cache.layers, part.contents.groups[0], part, device)
            continue
        with ThreadPoolExecutor(_READERS) if part.is_raw else thread_pool() as pool:
            fill = partial(_fill, cache.layers, part=part, device=device)
            list(pool.map(fill, part.contents.groups))
    return cache


def cache_geometry(parts: Sequence[Artifact]) -> Geometry:
    """The geometry of the cache that ``load_cache`` makes of ``parts``."""
    return Geometry.joined([part.contents.geometry for part in parts])


def loaded_nbytes(geometry: Geometry) -> int:
    """Bytes of memory that ``load_cache`` allocates for ``cache_geometry``: layers that hold every token have room for more."""
    full = (layer for index, layer in enumerate(geometry.layers) if geometry.holds_all(index))
    return geometry.cache_nbytes + ROOM * geometry.dtype.itemsize * sum(
        layer.token_elements for layer in full
    )


def _decoding_device(parts: Sequence[Artifact], model: Model) -> torch.device:
    """Where layers are made. What is raw is read into memory, from where layers move when they are first used."""
    device = device_of(model)
    # Threads launch kernels on their current GPU, which is the first.
    usable = device.type == "cuda" and device.index in (None, 0)
    return device if usable and not all(part.is_raw for part in parts) else torch.device("cpu")


def _fill(
    targets: Sequence[BufferedLayer | PrunedLayer], group: range, part: Artifact, device: torch.device
) -> None:
    if part.is_raw and device.type == "cpu" and all(targets[index].holds_all for index in group):
        for index in group:
            keys, values = targets[index].extend(part.contents.geometry.layers[index].tokens)
            part.read_into(f"layers.{index:04d}.keys", keys[0])
            part.read_into(f"layers.{index:04d}.values", values[0])
        return
    for index, layer in zip(group, part.group(group, device=device), strict=True):
        targets[index].place(layer)


def refuse_mismatch(part: Artifact, model: Model) -> None:
    """Raises ``MismatchError``, naming the fields that differ, for an artifact of another model, or one that holds no cache."""
    if part.inputs:
        reason = f"holds {', '.join(part.inputs)} for compress, and no cache"
        raise MismatchError(part.path, reason, "name another variant")
    made_by: Mapping[str, Any] = part.meta["model"]
    if made_by["fingerprint"] == model.fingerprint:
        return
    differing = [
        f"its {field} is {_short(made_by.get(field))}, that of {model.name} is {_short(value)}"
        for field, value in model.identity.to_json().items()
        if made_by.get(field) != value
    ]
    difference = "; ".join(differing or ["its fingerprint differs"])
    remedy = "Load the model it was made with, or prefill again with this one"
    raise MismatchError(part.path, f"was made by another model: {difference}. {remedy}")


def refuse_gaps(parts: Sequence[Artifact]) -> None:
    """Raises ``MismatchError`` for an artifact that does not continue the one before it."""
    if len({part.n_layers for part in parts}) > 1:
        reason = f"has {parts[-1].n_layers} layers, its prefix {parts[0].n_layers}"
        raise MismatchError(parts[-1].path, reason)
    tokens = 0
    before = digest_token_ids(())
    for part in parts:
        prefix = part.meta["prefix"]
        if prefix["digest"] != before or part.contents.start != tokens:
            other = f"another prefix ({counted(prefix['tokens'], 'token')}, digest {prefix['digest'][:12]}…)"
            reason = f"was prefilled under {other} than the one before it"
            raise MismatchError(part.path, reason, "prefill the document again")
        before = digest_token_ids(part.token_ids.tolist())
        tokens += len(part.token_ids)


def _short(value: object) -> str:
    text = str(value)
    return text[:12] + "…" if len(text) == 64 else text
