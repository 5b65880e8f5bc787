"""Layers of a cache that hold fewer tokens than the document has.

Where heads hold different tokens, those of all heads are packed, head after head, and no memory is spent on padding.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, NoReturn, TypeAlias

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from kvtool.codecs import LayerGeometry, LayerKV
from kvtool.engines.cache import ROOM, BufferedLayer, pruned_error
from kvtool.errors import UsageError
from kvtool.kernels.reference import Packed

_is_read_as_pruned: ContextVar[bool] = ContextVar("_is_read_as_pruned", default=False)


@contextmanager
def reading_pruned() -> Iterator[None]:
    """Lets a model run over pruned layers: the attention that reads them knows which tokens they hold."""
    token = _is_read_as_pruned.set(True)
    try:
        yield
    finally:
        _is_read_as_pruned.reset(token)


def _refuse_plain_reading() -> None:
    if not _is_read_as_pruned.get():
        raise UsageError(
            "cache",
            "its layers do not hold every token, so that a model's own attention cannot read them",
            "run the model within kvtool.engines.attention.cache_attention.cache_attention(model, cache)",
        )


class UniformLayer(BufferedLayer):
    """One layer whose heads hold the same tokens of a document, at ``indices`` [T] int32 in it, and all that are appended.

    Its length counts every token of the document, held or not, so that positions and masks come out right. ``update``
    returns the tokens that it holds: ``attention.cache_attention`` gives a model the mask of these.
    """

    holds_all, room = False, 0

    def __init__(self, n_held: int, n_tokens: int) -> None:
        """A layer that will hold ``n_held`` tokens of a document of ``n_tokens``. Call ``allocate`` next, then ``place``."""
        super().__init__(n_held)
        self.n_tokens = n_tokens
        self.indices = torch.empty(0, dtype=torch.int32)

    @property
    def n_appended(self) -> int:
        return self._length - len(self.indices)

    @property
    def columns(self) -> Tensor:
        """The places of all held tokens, [N]: columns of a mask."""
        appended = torch.arange(self.n_tokens, self.get_seq_length(), dtype=torch.int32)
        return torch.cat([self.indices, appended.to(self.indices.device)])

    @property
    def nbytes(self) -> int:
        return super().nbytes + self.indices.nbytes

    def place(self, part: LayerKV) -> None:
        """Copies the tokens of ``part`` after those in place. Its positions are places in the cache."""
        _refuse_strange_places(part.positions, self.n_tokens)
        heads = list(part.heads())
        places = heads[0].positions
        keys, values = self.extend(len(places))
        for number, head in enumerate(heads):
            keys[0, number], values[0, number] = head.keys[0], head.values[0]
        self.indices = torch.cat([self.indices, places.to(self.indices)])

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        _refuse_plain_reading()
        return super().update(key_states, value_states)

    def move(self, device: torch.device) -> None:
        super().move(device)
        self.indices = self.indices.to(device)

    def get_seq_length(self) -> int:
        return self.n_tokens + self.n_appended

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the last ``-tokens_to_remove`` tokens: of the document's, those that it holds."""
        length = max(0, self.get_seq_length() + min(0, tokens_to_remove))
        if length >= self.n_tokens:
            super().crop(tokens_to_remove)
            return
        held = self.indices < length
        super().keep(0, held.nonzero()[:, 0])
        self.indices, self.n_tokens = self.indices[held], length

    def keep(self, first: int, kept: Tensor) -> None:
        dropped = self.n_tokens - len(self.indices)
        super().keep(first - dropped, kept - dropped)

    def reset(self) -> None:
        super().reset()
        self.indices, self.n_tokens = self.indices[:0], 0


class AppendedLayer(BufferedLayer):
    """The tokens after a document. It grows by few, since a pruned document has few itself."""

    room = 0


class RaggedLayer(DynamicLayer):  # type: ignore[misc]
    """One layer whose heads hold different tokens of a document, ``packed``, and after them dense tokens, ``appended``.

    Its length is that of ``UniformLayer``. ``update`` returns the appended tokens alone: only ``attention.cache_attention``
    can read such a layer.
    """

    holds_all, room = False, 0

    def __init__(self, lengths: Sequence[int], n_tokens: int) -> None:
        """A layer whose heads will hold ``lengths`` tokens of a document of ``n_tokens``. Call ``allocate``, then ``place``."""
        super().__init__()
        self.n_tokens, self.appended = n_tokens, AppendedLayer()
        self._lengths = tuple(lengths)
        self._placed = [0 for _ in lengths]

    def allocate(
        self,
        key_size: int,
        value_size: int,
        dtype: torch.dtype,
        device: torch.device,
        *,
        biased: bool = False,
        pinned: bool = False,
    ) -> None:
        """Makes room for the tokens that ``place`` will bring, and no more."""

        def empty(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
            return torch.empty((n, *shape), dtype=dtype, device=device, pin_memory=pinned)

        n = sum(self._lengths)
        bias = empty(dtype=torch.float32).zero_() if biased else None
        places = empty(dtype=torch.int32)
        self.packed = Packed(empty(key_size), empty(value_size), places, bias, self._lengths)
        self.dtype, self.device = dtype, device
        self._placed = [0 for _ in self._lengths]
        self.is_initialized = True

    def place(self, part: LayerKV) -> None:
        """Copies the tokens of ``part`` after those of each head that are in place. Its positions are places in the cache."""
        _refuse_strange_places(part.positions, self.n_tokens)
        for number, (head, room) in enumerate(zip(part.heads(), self.packed.heads, strict=True)):
            start = room.start + self._placed[number]
            held = slice(start, start + head.keys.shape[1])
            self._placed[number] += head.keys.shape[1]
            self.packed.keys[held] = head.keys[0]
            self.packed.values[held] = head.values[0]
            self.packed.places[held] = head.positions.to(torch.int32)
            if self.packed.bias is not None and head.bias is not None:
                self.packed.bias[held] = head.bias[0]

    @property
    def keys(self) -> NoReturn:
        raise pruned_error("what reads all keys")

    @keys.setter
    def keys(self, value: None) -> None:
        """Takes the None that the base class begins with."""

    @property
    def values(self) -> NoReturn:
        raise pruned_error("what reads all values")

    @values.setter
    def values(self, value: None) -> None:
        """Takes the None that the base class begins with."""

    @property
    def nbytes(self) -> int:
        """Bytes of memory, with the room for tokens to be appended."""
        return self.appended.nbytes + sum(x.nbytes for x in _tensors(self.packed))

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        _refuse_plain_reading()
        self.move(key_states.device)
        held = self.appended.keys
        # The document is the same for a batch of any size.
        if held is not None and not held.shape[2] and len(held) != len(key_states):
            self.appended.reset()
        return self.appended.update(key_states, value_states)

    def move(self, device: torch.device) -> None:
        """Moves the layer to ``device``, once: a model may be spread over devices."""
        if self.packed.keys.device != device:
            self.packed = _move(self.packed, device)
        if self.appended.is_initialized:
            self.appended.move(device)

    def record_stream(self, stream: torch.cuda.Stream) -> None:
        for tensor in _tensors(self.packed):
            tensor.record_stream(stream)
        self.appended.record_stream(stream)

    def get_seq_length(self) -> int:
        return self.n_tokens + self.appended.get_seq_length()

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the last ``-tokens_to_remove`` tokens: of the document's, those that a head holds."""
        length = max(0, self.get_seq_length() + min(0, tokens_to_remove))
        self.appended.crop(tokens_to_remove)
        if length < self.n_tokens:
            self.packed, self.n_tokens = _crop(self.packed, length), length

    def keep(self, first: int, kept: Tensor) -> None:
        """Of the tokens from ``first`` on, which are appended ones, keeps ``kept``, ascending, and removes the others."""
        self.appended.keep(first - self.n_tokens, kept - self.n_tokens)

    def fit(self, room: int) -> None:
        """Frees room beyond that for ``room`` more tokens."""
        self.appended.fit(room)

    def reset(self) -> None:
        self.packed, self.n_tokens = _crop(self.packed, 0), 0
        self.appended.reset()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self.appended.reorder_cache(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.appended.batch_repeat_interleave(repeats)

    def batch_select_indices(self, indices: Tensor) -> None:
        self.appended.batch_select_indices(indices)


PrunedLayer: TypeAlias = UniformLayer | RaggedLayer


def pruned_layer(size: LayerGeometry, n_tokens: int, dtype: torch.dtype, device: torch.device) -> PrunedLayer:
    """A layer of a document of ``n_tokens`` tokens, of which it has room for those that ``size`` says that it holds."""
    if size.lengths is None:
        uniform = UniformLayer(size.tokens, n_tokens)
        uniform.allocate(size.keys, size.values, dtype, device)
        return uniform
    ragged = RaggedLayer(size.lengths, n_tokens)
    ragged.allocate(size.keys[1], size.values[1], dtype, device, biased=size.biased)
    return ragged


def new_layer(
    size: LayerGeometry, n_tokens: int, dtype: torch.dtype, device: torch.device
) -> BufferedLayer | PrunedLayer:
    """An empty layer of a cache of ``n_tokens`` tokens that will hold what ``size``, of ``LayerGeometry.joined``, says.

    One that will hold them all has ``ROOM`` for more; another has none.
    """
    if size.lengths is not None or size.tokens < n_tokens:
        return pruned_layer(size, n_tokens, dtype, device)
    layer = BufferedLayer(n_tokens + ROOM)
    layer.allocate(size.keys, size.values, dtype, device)
    return layer


def joined_layer(parts: Sequence[LayerKV], n_tokens: int) -> BufferedLayer | PrunedLayer:
    """A layer of ``parts``, one after the other, whose positions are places in a cache of ``n_tokens`` tokens."""
    size = LayerGeometry.joined([LayerGeometry.of(part) for part in parts])
    layer = new_layer(size, n_tokens, parts[0].keys.dtype, parts[0].keys.device)
    for part in parts:
        layer.place(part)
    return layer


def appended(layer: BufferedLayer | RaggedLayer, places: range) -> LayerKV:
    """A copy of the last tokens of ``layer``, at ``places``, which were appended to it."""
    dense = layer.appended if isinstance(layer, RaggedLayer) else layer
    assert dense.keys is not None
    assert dense.values is not None
    keys, values = (
        states[0, :, states.shape[2] - len(places) :].clone() for states in (dense.keys, dense.values)
    )
    return LayerKV(keys, values, torch.arange(places.start, places.stop))


def _tensors(packed: Packed) -> list[Tensor]:
    return [x for x in packed if isinstance(x, Tensor)]


def _changed(packed: Packed, change: Callable[[Tensor], Tensor]) -> Packed:
    bias = None if packed.bias is None else change(packed.bias)
    keys, values, places = change(packed.keys), change(packed.values), change(packed.places)
    return Packed(keys, values, places, bias, packed.lengths)


def _crop(packed: Packed, length: int) -> Packed:
    """A copy of the tokens whose place is before ``length``."""
    kept = packed.places < length
    lengths = tuple(int(kept[head].sum()) for head in packed.heads)
    return _changed(packed, lambda x: x[kept])._replace(lengths=lengths)


def _move(packed: Packed, device: torch.device) -> Packed:
    return _changed(packed, lambda x: x.to(device, non_blocking=x.is_cpu and x.is_pinned()))


def _refuse_strange_places(places: Tensor, n_tokens: int) -> None:
    if len(places) and not 0 <= int(places.min()) <= int(places.max()) < n_tokens:
        span = f"{int(places.min())} to {int(places.max())}"
        raise UsageError("positions", f"{span} are not all in a cache of {n_tokens} tokens")
