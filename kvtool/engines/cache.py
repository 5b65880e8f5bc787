"""A transformers cache over buffers that grow in place.

transformers' own ``DynamicLayer`` copies a layer's whole cache for every token; over a long document that costs
more than the model. Here a layer is allocated once, with room for what follows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from kvtool.codecs import LayerKV
from kvtool.errors import UsageError

ROOM = 256
"""Tokens of room after a loaded document, before the first reallocation."""

STEP = 32
"""Tokens by which a layer without such room grows, one that lost tokens to pruning. ``ROOM`` may be as large as what it holds."""


class BufferedLayer(DynamicLayer):  # type: ignore[misc]
    """One layer's keys ``[B, H, T, D]`` and values ``[B, H, T, Dv]``, as views of buffers with room to grow.

    Every token is kept, in sliding-window layers too: the model's mask limits what is seen, and segments are
    reassembled from all of them.
    """

    holds_all = True
    """Whether the layer holds every token of the cache, for every head."""

    room = ROOM
    """Tokens of room that it keeps while nothing is appended."""

    def __init__(self, capacity: int = 0) -> None:
        self._capacity = capacity
        self._buffers: dict[str, Tensor] = {}
        self._length = 0
        super().__init__()

    @property
    def keys(self) -> Tensor | None:
        return self._view("keys")

    @keys.setter
    def keys(self, value: Tensor | None) -> None:
        self._adopt("keys", value)

    @property
    def values(self) -> Tensor | None:
        return self._view("values")

    @values.setter
    def values(self, value: Tensor | None) -> None:
        self._adopt("values", value)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        (batch, *keys), (_, *values) = key_states.shape, value_states.shape
        self.allocate((keys[0], keys[2]), (values[0], values[2]), key_states.dtype, key_states.device, batch)

    def allocate(
        self,
        keys: tuple[int, int],
        values: tuple[int, int],
        dtype: torch.dtype,
        device: torch.device,
        batch: int = 1,
        *,
        pinned: bool = False,
    ) -> None:
        """Makes room for the layer's capacity of tokens; ``keys`` and ``values`` are each (heads, size).

        ``pinned`` memory can be copied to a GPU while other work computes.
        """
        self.dtype, self.device = dtype, device
        for name, (heads, size) in (("keys", keys), ("values", values)):
            shape = (batch, heads, self._capacity, size)
            self._buffers[name] = torch.empty(shape, dtype=dtype, device=device, pin_memory=pinned)
        self._length = 0
        self.is_initialized = True

    def extend(self, tokens: int) -> tuple[Tensor, Tensor]:
        """Views ``[B, H, tokens, D]`` of the next ``tokens`` places, for the caller to write."""
        start, end = self._length, self._length + tokens
        for name, buffer in self._buffers.items():
            # Tensors made in inference mode cannot be written to outside of it.
            sealed = buffer.is_inference() and not torch.is_inference_mode_enabled()
            if buffer.shape[2] < end or sealed:
                growth = max(self.room, end // 8) if self.room else STEP
                grown = buffer.new_empty((*buffer.shape[:2], end + growth, buffer.shape[3]))
                grown[:, :, :start] = buffer[:, :, :start]
                self._buffers[name] = grown
        self._length = end
        return self._buffers["keys"][:, :, start:end], self._buffers["values"][:, :, start:end]

    def place(self, part: LayerKV) -> None:
        """Copies the tokens of ``part`` after those in place; it has all heads' tokens."""
        if not self.is_initialized:
            self.lazy_initialization(part.keys[None], part.values[None])
        keys, values = self.extend(part.keys.shape[1])
        keys[0].copy_(part.keys)
        values[0].copy_(part.values)

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        self.move(key_states.device)
        keys, values = self.extend(key_states.shape[2])
        keys.copy_(key_states)
        values.copy_(value_states)
        return self.keys, self.values  # type: ignore[return-value]

    def move(self, device: torch.device) -> None:
        """Moves the layer to ``device``, once: a model may be spread over devices."""
        if self._buffers["keys"].device != device:
            self._buffers = {
                name: buffer.to(device, non_blocking=buffer.is_cpu and buffer.is_pinned())
                for name, buffer in self._buffers.items()
            }

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        for buffer in self._buffers.values():
            buffer.record_stream(stream)

    def get_seq_length(self) -> int:
        return self._length

    @property
    def nbytes(self) -> int:
        """Bytes of memory, with the room for tokens to be appended."""
        return sum(buffer.nbytes for buffer in self._buffers.values())

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the last ``-tokens_to_remove`` tokens (a negative number, as transformers has it)."""
        if tokens_to_remove > 0:
            raise ValueError(f"crop({tokens_to_remove}): expected a negative number of tokens to remove")
        self._length = max(0, self._length + tokens_to_remove)

    def keep(self, first: int, kept: Tensor) -> None:
        """Of the tokens from ``first`` on, keeps ``kept``, ascending indices into the layer, and removes the others."""
        for buffer in self._buffers.values():
            buffer[:, :, first : first + len(kept)] = buffer[:, :, kept.to(buffer.device)]
        self._length = first + len(kept)

    def fit(self, room: int) -> None:
        """Frees the buffers beyond ``room`` tokens after the cached ones."""
        for name, buffer in self._buffers.items():
            if buffer.shape[2] > self._length + room:
                fitting = buffer.new_empty((*buffer.shape[:2], self._length + room, buffer.shape[3]))
                fitting[:, :, : self._length] = buffer[:, :, : self._length]
                self._buffers[name] = fitting

    def reset(self) -> None:
        self._buffers, self._length, self.is_initialized = {}, 0, False

    def _view(self, name: str) -> Tensor | None:
        buffer = self._buffers.get(name)
        return None if buffer is None else buffer[:, :, : self._length]

    def _adopt(self, name: str, value: Tensor | None) -> None:
        if value is None:
            self._buffers.pop(name, None)
        else:
            self._buffers[name] = value
            self._length = value.shape[2]


@dataclass(frozen=True)
class ParallelEncoding:
    """How to attend to a cache whose tokens after ``prefix_tokens`` are documents that do not see one another.

    ``temperature`` and ``scale`` change attention over them as ``attention.parallel_encoding`` says; 1 and 1 change nothing.
    """

    temperature: float
    scale: float
    prefix_tokens: int = 0


class DocumentCache(Cache):  # type: ignore[misc]
    """A transformers ``Cache`` of known tokens.

    ``token_ids`` is ``[N]`` (int64): all the tokens it was loaded with, prefix first, as a full prefill would see
    them. Pass ``generate`` these ids and the question's after them. Where ``parallel`` is set, and where layers hold fewer
    tokens, the model runs under ``attention.cache_attention.cache_attention``.
    """

    parallel: ParallelEncoding | None = None

    def __init__(self, n_layers: int, *, capacity: int = 0, token_ids: Tensor | None = None) -> None:
        super().__init__(layers=[BufferedLayer(capacity) for _ in range(n_layers)])
        self.token_ids = torch.empty(0, dtype=torch.int64) if token_ids is None else token_ids

    @property
    def holds_all(self) -> bool:
        """Whether every layer holds every token, for every head."""
        return all(layer.holds_all for layer in self.layers)

    @property
    def nbytes(self) -> int:
        """Bytes of memory of all layers, with the room for tokens to be appended."""
        return sum(layer.nbytes for layer in self.layers)

    def crop(self, tokens_to_remove: int) -> None:
        super().crop(tokens_to_remove)
        self.token_ids = self.token_ids[: self.get_seq_length()]

    def fit(self, room: int | None = None) -> None:
        """Frees what layers have grown by beyond ``room`` tokens after the cached ones, by default each layer's own."""
        for layer in self.layers:
            layer.fit(layer.room if room is None else room)

    def reset(self) -> None:
        super().reset()
        self.token_ids = self.token_ids[:0]


def refuse_pruned(cache: DocumentCache, purpose: str) -> None:
    """Refuses ``purpose``, a noun phrase, where ``cache`` does not hold every token."""
    # transformers' own caches hold every token.
    if isinstance(cache, DocumentCache) and not cache.holds_all:
        raise pruned_error(purpose)


def pruned_error(purpose: str) -> UsageError:
    return UsageError(
        "cache",
        f"it was pruned: its layers do not hold every token of the document, as {purpose} needs",
        "load the raw variant, or one of a recipe that keeps every token",
    )
