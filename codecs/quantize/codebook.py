"""Non-uniform quantization: levels found by k-means, one set of them for a layer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, TypeAlias

import numpy as np
import torch
from torch import Tensor

from kvtool.codecs.float16 import SMALLEST, saturated, to_float16
from kvtool.codecs.spec import Array, Payload, Spec
from kvtool.codecs.stage import Kind, Stage
from kvtool.codecs.stage_registry import register

Histogram: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.int64]]"
"""Entries in each of ``BINS`` equal bins over [-1, 1]."""
Levels: TypeAlias = "np.ndarray[tuple[int], np.dtype[np.float64]]"

BINS = 4096
ITERATIONS = 100
TOTAL = 1 << 40
"""About the sum of a weighted histogram. Times the number of bins it is far from the end of 64 bits."""


@register
@dataclass(frozen=True)
class Codebook(Stage):
    """``x`` [H, T, D] float32, float16 or bfloat16 becomes, or [L, H, T, D] with L in front of each,

    - ``codes`` [H, T, D] uint8, ``bits`` bits each;
    - ``levels`` [2**bits] float16, ascending;
    - ``scale`` and ``zero`` float16, half the range of each vector and the middle of it: one for each channel of
      a head ([H, 1, D], ``axis="token"``) or each token of a head ([H, T, 1], ``axis="channel"``).

    An entry is read back as ``levels[code] * scale + zero``. The levels are those of KVQuant's nuqX
    (arXiv 2401.18079): k-means of all of a layer's entries, each vector's mapped to [-1, 1]. Lloyd's algorithm
    starts from quantiles, runs on a histogram of 4096 bins for a fixed number of rounds and counts every entry
    alike; ``WeightedCodebook`` does not. The paper fits its levels once for all documents; here they are fitted to
    the very entries that they encode.
    ``match`` moves the levels so that the decoded entries have the mean and the standard deviation of the
    mapped ones (the paper's Q-Norm, for 2 bits). Raises CodecError for entries beyond float16's range.
    """

    name: ClassVar[str] = "codebook"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "quantize"

    bits: int = 3
    axis: Literal["token", "channel"] = "token"
    match: bool = False

    def __post_init__(self) -> None:
        self.require(self.bits in range(1, 9), "bits", self.bits, "1 to 8")
        self.require(self.axis in ("token", "channel"), "axis", self.axis, "'token' or 'channel'")
        self.require(isinstance(self.match, bool), "match", self.match, "true or false")

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        return cls(), cls(bits=2, axis="channel", match=True), cls(bits=8, axis="channel")

    @property
    def dim(self) -> int:
        return -2 if self.axis == "token" else -1

    def plan(self, spec: Spec) -> Spec:
        x = self.x_of(spec, "...", "heads", "tokens", "channels")
        self.require(len(x.shape) <= 4, "shape of x", list(x.shape), "[(layers,) heads, tokens, channels]")
        per_vector = list(x.shape)
        per_vector[self.dim] = 1
        arrays = {
            "codes": Array(x.shape, torch.uint8, levels=1 << self.bits),
            "levels": Array((*x.shape[:-3], 1 << self.bits), torch.float16),
            "scale": Array(tuple(per_vector), torch.float16),
            "zero": Array(tuple(per_vector), torch.float16),
        }
        return spec.replace("x", arrays, self.name)

    def encode(self, x: Payload, spec: Spec) -> Payload:
        entries = x["x"].float()
        zero, scale = self._ranges(entries)
        # A range below float16's smallest step has scale 0, and 0 / 0 would be NaN.
        mapped = (entries - zero.float()) / scale.float().clamp(min=SMALLEST)
        mapped.clamp_(-1, 1)
        weights = self._weights(scale, spec)
        if mapped.ndim == 3:
            codes, levels = self._quantized(mapped, weights)
        else:
            layers = map(self._quantized, mapped, [None] * len(mapped) if weights is None else weights)
            codes, levels = map(torch.stack, zip(*layers, strict=True))
        return spec.beside_x(x) | {"codes": codes, "levels": levels, "scale": scale, "zero": zero}

    def decode(self, y: Payload, spec: Spec) -> Payload:
        array = spec.arrays["x"]
        x = torch.empty(array.shape, dtype=array.dtype, device=y["codes"].device)
        # Whatever a byte holds, it is one of 256.
        table = torch.zeros((*array.shape[:-3], 256), device=x.device)
        table[..., : 1 << self.bits] = y["levels"]
        for index in np.ndindex(array.shape[:-2]):
            own = table[index[:-1]].index_select(0, y["codes"][index].flatten().int()).view(array.shape[-2:])
            own.mul_(y["scale"][index]).add_(y["zero"][index])
            x[index] = saturated(own, array.dtype)
        return spec.beside_x(y) | {"x": x}

    def error(self, x: Payload, spec: Spec, inner: float = 0.0) -> float:
        """Measured on ``x``, since it depends on the levels."""
        return inner + self.trial(x, spec)[1] if x["x"].numel() else inner

    def _ranges(self, entries: Tensor) -> tuple[Tensor, Tensor]:
        """Middle and half range of each vector, as they are stored."""
        if not entries.shape[self.dim]:
            shape = list(entries.shape)
            shape[self.dim] = 1
            return (torch.zeros(shape, dtype=torch.float16, device=entries.device),) * 2
        low, high = entries.amin(self.dim, keepdim=True), entries.amax(self.dim, keepdim=True)
        for field, extreme in (("smallest entry", low), ("largest entry", high)):
            to_float16(self, field, extreme)
        zero = to_float16(self, "middle of a range", (low + high) / 2)
        return zero, to_float16(self, "half of a range", (high - low) / 2)

    def _weights(self, scale: Tensor, spec: Spec) -> Tensor | None:
        """Weights of entries in k-means, of a shape that broadcasts to theirs; None where all count alike."""
        return None

    def _quantized(self, mapped: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
        """Codes [H, T, D] and levels of one layer's entries, which lie in [-1, 1]."""
        counts, weighed = np.zeros(BINS, dtype=np.int64), np.zeros(BINS)
        for number, head in enumerate(mapped):
            bins = ((head + 1) * (BINS / 2)).int().clamp_(max=BINS - 1).flatten()
            counts += torch.bincount(bins, minlength=BINS).cpu().numpy()
            if weights is not None:
                # On the CPU, where sums are taken in the same order each time.
                entries = weights[number].expand_as(head).flatten().cpu().double().numpy()
                weighed += np.bincount(bins.cpu().numpy(), weights=entries, minlength=BINS)
        levels = lloyd(integers(weighed) if weighed.any() else counts, 1 << self.bits)
        borders = torch.from_numpy((levels[1:] + levels[:-1]) / 2).float().to(mapped.device)
        codes = torch.empty(mapped.shape, dtype=torch.uint8, device=mapped.device)
        for head, own in zip(mapped, codes, strict=True):
            own.copy_(torch.bucketize(head, borders, out_int32=True))
        if self.match:
            levels = matched(counts, levels)
        return codes, torch.from_numpy(levels).to(torch.float16).to(mapped.device)


def lloyd(counts: Histogram, k: int) -> Levels:
    """``k`` ascending levels for a histogram of entries over [-1, 1]: k-means in one dimension.

    It starts from quantiles of the histogram's cube root, the density of the best levels as k grows, and reads
    sums over runs of bins off running totals.
    """
    below, moment = (np.concatenate(([0], total.cumsum())) for total in (counts, counts * np.arange(BINS)))
    density = np.cbrt(counts).cumsum()
    places = np.searchsorted(density, (np.arange(k) + 0.5) / k * density[-1]).astype(np.float64)
    for _ in range(ITERATIONS):
        cuts = _cuts(places)
        sizes, sums = np.diff(below[cuts]), np.diff(moment[cuts])
        # A level that nothing is nearest to stays.
        places = np.where(sizes > 0, sums / np.maximum(sizes, 1), places)
    return _value(places)


def integers(weights: Levels) -> Histogram:
    """``weights`` in proportion, as integers whose running totals are exact."""
    rounded: Histogram = np.rint(weights * (TOTAL / weights.sum())).astype(np.int64)
    return rounded


def matched(counts: Histogram, levels: Levels) -> Levels:
    """``levels``, shifted and stretched so that they decode to the histogram's mean and standard deviation."""
    sizes = np.diff(np.concatenate(([0], counts.cumsum()))[_cuts((levels + 1) * (BINS / 2) - 0.5)])
    if not counts.sum():
        return levels
    mean, deviation = _moments(_value(np.arange(BINS)), counts)
    own_mean, own_deviation = _moments(levels, sizes)
    return mean + (levels - own_mean) * (deviation / own_deviation if own_deviation else 1.0)


def _cuts(places: Levels) -> Histogram:
    """Where the runs of bins begin and end that are nearest to each of ``places``, counted in bins."""
    borders = np.ceil((places[1:] + places[:-1]) / 2).astype(np.int64)
    return np.concatenate(([0], borders, [BINS]))


def _value(places: np.ndarray[Any, Any]) -> Levels:
    """The middles of bins."""
    return np.asarray((places + 0.5) / (BINS / 2) - 1, dtype=np.float64)


def _moments(values: Levels, weights: Histogram) -> tuple[float, float]:
    mean = np.average(values, weights=weights)
    return float(mean), float(np.sqrt(np.average((values - mean) ** 2, weights=weights)))
