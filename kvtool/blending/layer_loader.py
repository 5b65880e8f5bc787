"""Loads cached segments into one cache, layer by layer, while the model computes with the first layers."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from concurrent.futures import wait as wait_for_futures

import torch

from kvtool.blending.cache import BlendedCache
from kvtool.blending.layout import Layout, Placed
from kvtool.engines.cache import ROOM, BufferedLayer, DocumentCache
from kvtool.engines.rope import Rotations, moved
from kvtool.kernels.threads import background_pool
from kvtool.model.model import Model
from kvtool.system.trace import Trace

READERS = 2
"""Threads that read, check, decode and move. Each computes on one core: the model has the others."""


class LayerLoader:
    """Fills ``cache`` in the background, first layers first. ``wait(layer)`` returns once that layer is loaded.

    Every byte is checked before its layer counts as loaded. ``wait`` raises what a thread raised. Leaving the context
    waits for the threads.
    """

    def __init__(
        self,
        layout: Layout,
        rotations: Rotations,
        cache: DocumentCache,
        trace: Trace,
        upload: Upload | None = None,
    ) -> None:
        self.layout, self.rotations, self.cache = layout, rotations, cache
        self.trace, self.upload = trace, upload
        self._targets = [(layer.keys, layer.values) for layer in cache.layers]
        self._pool = background_pool(READERS, "loading")
        self._by_layer: list[list[Future[None]]] = [[] for _ in cache.layers]
        groups = [
            (group, segment) for segment in layout.segments for group in segment.artifact.contents.groups
        ]
        for index, futures in enumerate(self._by_layer):
            for group, segment in groups:
                if group.start == index:
                    future = self._pool.submit(self._fill, group, segment)
                    for covered in group:
                        self._by_layer[covered].append(future)
            if upload:
                futures[:] = [self._pool.submit(self._send, index, list(futures))]

    def __enter__(self) -> LayerLoader:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def wait(self, layer: int) -> None:
        if any(not future.done() for future in self._by_layer[layer]):
            with self.trace.span("wait", f"for layer {layer}"):
                wait_for_futures(self._by_layer[layer])
        for future in self._by_layer[layer]:
            future.result()
        if self.upload:
            self.upload.wait(layer, self.cache.layers[layer])

    def wait_for_all(self) -> None:
        for layer in range(len(self._by_layer)):
            self.wait(layer)

    def _send(self, layer: int, fills: Sequence[Future[None]]) -> None:
        assert self.upload is not None
        for future in fills:
            future.result()
        with self.trace.span("upload", f"layer {layer}"):
            self.upload.start(layer, self.cache.layers[layer])

    def _fill(self, group: range, segment: Placed) -> None:
        part, tokens = segment.artifact, slice(segment.start, segment.stop)
        layers = f"layer {group[0]}" if len(group) == 1 else f"layers {group[0]} to {group[-1]}"
        what = f"{layers} of {segment.document}"
        places = [tuple(x[0, :, tokens] for x in self._targets[index]) for index in group]
        if part.is_raw:
            with self.trace.span("read", what):
                for index, (keys, values) in zip(group, places, strict=True):
                    part.read_into(f"layers.{index:04d}.keys", keys)
                    part.read_into(f"layers.{index:04d}.values", values)
        else:
            with self.trace.span("read", what):
                stored = part.stored(group)
            with self.trace.span("decode", what):
                for (keys, values), layer in zip(places, part.decoded(group, stored), strict=True):
                    keys.copy_(layer.keys)
                    values.copy_(layer.values)
        if segment.moved:
            with self.trace.span("move", what):
                for index, (keys, values) in zip(group, places, strict=True):
                    sides = (keys, self.rotations.keys[index]), (values, self.rotations.values[index])
                    for x, rope in sides:
                        if rope.inv_freq:
                            x.copy_(moved(x, rope, segment.moved))


class Upload:
    """Copies layers to a GPU on a stream of its own, while the model computes there."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._events: dict[int, torch.cuda.Event] = {}

    @classmethod
    def for_model(cls, model: Model) -> Upload | None:
        """None for a model on the CPU, and for one on several devices, whose layers are copied when they are used."""
        devices = {parameter.device for parameter in model.model.parameters()}
        (device, *others) = devices
        return None if others or device.type != "cuda" else cls(device)

    def start(self, index: int, layer: BufferedLayer) -> None:
        with torch.cuda.stream(self.stream):
            layer.move(self.device)
            self._events[index] = self.stream.record_event()

    def wait(self, index: int, layer: BufferedLayer) -> None:
        """Makes what is computed from now on wait for the layer."""
        stream = torch.cuda.current_stream(self.device)
        stream.wait_event(self._events[index])
        # The buffers belong to the other stream: they must not be freed while this one reads.
        layer.record_stream(stream)


def empty_cache(layout: Layout, room: int = 0, *, pinned: bool = False) -> BlendedCache:
    """A cache of the right size for ``layout``, with room for ``room`` more tokens.

    Its segments are not written yet. Text without a cache is all zeros, since it may be attended to before it is computed.
    """
    geometry = layout.segments[0].artifact.contents.geometry
    n_tokens = len(layout.token_ids)
    cache = BlendedCache(layout, len(geometry.layers), capacity=n_tokens + max(ROOM, room))
    # Threads cannot write to tensors made in inference mode, which a caller may be in.
    with torch.inference_mode(False):
        for layer, sizes in zip(cache.layers, geometry.layers, strict=True):
            layer.allocate(sizes.keys, sizes.values, geometry.dtype, torch.device("cpu"), pinned=pinned)
            for states in layer.extend(n_tokens):
                states[:, :, ~layout.cached] = 0
    return cache
