"""Sizes of a segment's layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import groupby

import torch

from kvtool.codecs.errors import CodecError, unexpected
from kvtool.codecs.kv import KV, LayerKV
from kvtool.codecs.spec import Array, Json

DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}
LAYERS_AT_MOST = 100_000
HEADS_AT_MOST, CHANNELS_AT_MOST = 1 << 12, 1 << 24
"""Of a layer's keys or values, and channels of all heads: where there are no tokens, no stored byte bounds them."""


@dataclass(frozen=True)
class LayerGeometry:
    """``tokens`` held; heads and channels of ``keys`` [H, D] and of ``values`` [H, Dv].

    A packed layer (``LayerKV.lengths``) has ``tokens`` N, one head, and ``lengths``. ``biased``: its tokens have biases.
    """

    tokens: int
    keys: tuple[int, int]
    values: tuple[int, int]
    lengths: tuple[int, ...] | None = None
    biased: bool = False

    @classmethod
    def of(cls, layer: LayerKV) -> LayerGeometry:
        k, v = layer.keys, layer.values
        sizes = (k.shape[0], k.shape[2]), (v.shape[0], v.shape[2])
        return cls(layer.positions.numel(), *sizes, layer.lengths, layer.bias is not None)

    @classmethod
    def joined(cls, parts: Sequence[LayerGeometry]) -> LayerGeometry:
        """The layer that a cache has of ``parts``, one after the other.

        Dense where heads hold the same tokens and none has a bias, else packed.
        """
        first, biased = parts[0], any(part.biased for part in parts)
        if not biased and (first.n_heads == 1 or all(part.lengths is None for part in parts)):
            return cls(sum(part.tokens for part in parts), first.keys, first.values)
        lengths = tuple(map(sum, zip(*(part.head_lengths for part in parts), strict=True)))
        return cls(sum(lengths), (1, first.keys[1]), (1, first.values[1]), lengths, biased)

    def whole(self, tokens: int) -> LayerGeometry:
        """The layer with all ``tokens`` of the segment in each head, and without biases."""
        heads = self.n_heads
        values = self.values if self.lengths is None else (heads, self.values[1])
        return LayerGeometry(tokens, (heads, self.keys[1]), values)

    @property
    def token_elements(self) -> int:
        """Number of key and value elements of one token in all heads."""
        if self.lengths is None:
            return math.prod(self.keys) + math.prod(self.values)
        return self.n_heads * (self.keys[1] + self.values[1])

    @property
    def held_elements(self) -> int:
        """Number of the key and value elements that are held."""
        return self.tokens * (math.prod(self.keys) + math.prod(self.values))

    @property
    def n_heads(self) -> int:
        """Heads of the keys."""
        return len(self.head_lengths)

    @property
    def head_lengths(self) -> tuple[int, ...]:
        """The number of tokens of each head of the keys."""
        return (self.tokens,) * self.keys[0] if self.lengths is None else self.lengths

    def __post_init__(self) -> None:
        if self.lengths is not None:
            packed = (self.keys[0], self.values[0])
            if packed != (1, 1) or sum(self.lengths) != self.tokens or len(self.lengths) > HEADS_AT_MOST:
                raise CodecError(
                    f"geometry: heads hold {str(self.lengths)[:80]} tokens, expected {self.tokens} in all, in a layer of "
                    f"one head, not of {packed}"
                )
        for side, (heads, channels) in (("keys", self.keys), ("values", self.values)):
            if heads > HEADS_AT_MOST or max(heads, 1) * channels > CHANNELS_AT_MOST:
                raise CodecError(
                    f"geometry: {side} have {heads} heads of {channels} channels, expected at most {HEADS_AT_MOST} heads "
                    f"and {CHANNELS_AT_MOST} channels in all"
                )


@dataclass(frozen=True)
class Geometry:
    """The dtype of keys and values, the segment's number of tokens, and each layer's sizes."""

    dtype: torch.dtype
    n_tokens: int
    layers: tuple[LayerGeometry, ...]

    @classmethod
    def of(cls, kv: KV) -> Geometry:
        """Raises CodecError for layers whose tensors do not fit together, naming the layer."""
        if not kv.layers or kv.dtype not in DTYPES.values():
            what = "has no layers" if not kv.layers else f"is of {kv.dtype}, expected {', '.join(DTYPES)}"
            raise CodecError(f"a KV that {what} cannot be encoded")
        layers = []
        for index, layer in enumerate(kv.layers):
            k, v, tokens = layer.keys, layer.values, layer.positions.numel()
            if not (k.dtype == v.dtype == kv.dtype):
                raise CodecError(f"layer {index}: keys are {k.dtype}, values {v.dtype}, expected {kv.dtype}")
            axes = layer.positions.ndim, k.ndim, v.ndim
            if axes != (1, 3, 3) or {k.shape[1], v.shape[1]} != {tokens}:
                raise CodecError(
                    f"layer {index}: keys are {list(k.shape)}, values {list(v.shape)} and positions "
                    f"{list(layer.positions.shape)}, expected [H, T, D], [H, T, Dv] and [T]"
                )
            most = max(layer.lengths, default=0) if layer.lengths is not None else tokens
            if most > kv.n_tokens:
                raise CodecError(f"layer {index}: holds {most} tokens, but the segment has {kv.n_tokens}")
            layers.append(LayerGeometry.of(layer))
        return cls(kv.dtype, kv.n_tokens, tuple(layers))

    def arrays(self, index: int) -> tuple[Array, Array]:
        """Keys [H, T, D] and values [H, T, Dv] of a layer."""
        layer = self.layers[index]
        keys, values = (
            Array((heads, layer.tokens, channels), self.dtype)
            for heads, channels in (layer.keys, layer.values)
        )
        return keys, values

    @property
    def n_elements(self) -> int:
        """Number of key and value elements of all tokens in all heads, those that were pruned too."""
        return self.n_tokens * sum(layer.token_elements for layer in self.layers)

    @property
    def held_elements(self) -> int:
        """Number of the key and value elements that are held."""
        return sum(layer.held_elements for layer in self.layers)

    @classmethod
    def joined(cls, parts: Sequence[Geometry]) -> Geometry:
        """The geometry of a cache of ``parts``, one after the other: its layers are those of ``LayerGeometry.joined``."""
        layers = zip(*(part.layers for part in parts), strict=True)
        n_tokens = sum(part.n_tokens for part in parts)
        return cls(parts[0].dtype, n_tokens, tuple(map(LayerGeometry.joined, layers)))

    @property
    def cache_nbytes(self) -> int:
        """Bytes of a cache's layers: keys and values, and where tokens were pruned their places and biases (32 bits each)."""
        joined = Geometry.joined([self])
        beside = sum(
            4 * layer.tokens * (2 if layer.biased else 1)
            for index, layer in enumerate(joined.layers)
            if not joined.holds_all(index)
        )
        return joined.held_elements * self.dtype.itemsize + beside

    def holds_all(self, index: int) -> bool:
        """Whether a layer holds every token, unpacked and without biases."""
        layer = self.layers[index]
        return layer.lengths is None and layer.tokens == self.n_tokens and not layer.biased

    @property
    def is_pruned(self) -> bool:
        """Whether some layer is not as it was prefilled."""
        return not all(map(self.holds_all, range(len(self.layers))))

    def to_json(self) -> dict[str, Json]:
        """Runs of equal layers are written once, with their ``count``."""
        runs: list[Json] = []
        for layer, run in groupby(self.layers):
            sizes: dict[str, Json] = {
                "tokens": layer.tokens,
                "keys": list(layer.keys),
                "values": list(layer.values),
            }
            if layer.lengths is not None:
                sizes["lengths"] = list(layer.lengths)
            if layer.biased:
                sizes["biased"] = True
            runs.append({"count": len(list(run)), **sizes})
        dtype = str(self.dtype).removeprefix("torch.")
        return {"dtype": dtype, "n_tokens": self.n_tokens, "layers": runs}

    @classmethod
    def from_json(cls, value: Json) -> Geometry:
        """Undo ``to_json``. Raises CodecError, naming the field."""
        value = _object("geometry", value, {"dtype", "n_tokens", "layers"})
        dtype, runs, n_tokens = value["dtype"], value["layers"], _size("n_tokens", value["n_tokens"])
        if not isinstance(dtype, str) or dtype not in DTYPES:
            raise unexpected("geometry: dtype", dtype, ", ".join(DTYPES))
        if not isinstance(runs, Sequence) or isinstance(runs, str) or not runs:
            raise unexpected("geometry: layers", runs, "a list of runs of equal layers")
        layers: list[LayerGeometry] = []
        for item in runs:
            run = _object(
                "geometry: layers", item, {"count", "tokens", "keys", "values"}, {"lengths", "biased"}
            )
            count, tokens = _size("count", run["count"]), _size("tokens", run["tokens"])
            lengths = _lengths(run["lengths"]) if "lengths" in run else None
            most = tokens if lengths is None else max(lengths, default=0)
            if len(layers) + count > LAYERS_AT_MOST or most > n_tokens:
                raise CodecError(f"geometry: {count} layers of {most} tokens, of {n_tokens} in the segment")
            if run.get("biased", True) is not True:
                raise unexpected("geometry: biased", run["biased"], "true, or nothing")
            sizes = _pair("keys", run["keys"]), _pair("values", run["values"])
            layers += [LayerGeometry(tokens, *sizes, lengths, "biased" in run)] * count
        return cls(DTYPES[dtype], n_tokens, tuple(layers))


def _object(name: str, value: Json, fields: set[str], optional: Set[str] = frozenset()) -> Mapping[str, Json]:
    if not isinstance(value, Mapping) or value.keys() - optional != fields:
        raise unexpected(name, value, f"an object of {', '.join(sorted(fields))}")
    return value


def _size(name: str, value: Json) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 31:
        raise unexpected(f"geometry: {name}", value, "an integer from 0 to 2**31 - 1")
    return value


def _pair(name: str, value: Json) -> tuple[int, int]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 2:
        raise unexpected(f"geometry: {name}", value, "[heads, channels]")
    return _size(name, value[0]), _size(name, value[1])


def _lengths(value: Json) -> tuple[int, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) > HEADS_AT_MOST:
        raise unexpected("geometry: lengths", value, "the number of tokens of each head")
    return tuple(_size("lengths", length) for length in value)
