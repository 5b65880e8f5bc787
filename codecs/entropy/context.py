"""Transform coefficients under a model that adapts to component and token."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kvtool.codecs.block_coder import read_lengths
from kvtool.codecs.calibration import Calibration, entry
from kvtool.codecs.entropy.rans import Rans
from kvtool.codecs.entropy_models import context as model
from kvtool.codecs.errors import CodecError
from kvtool.codecs.format.container import byte_tensor
from kvtool.codecs.spec import Array, Payload, Spec
from kvtool.codecs.stage import Kind, Stage
from kvtool.codecs.stage_registry import register
from kvtool.kernels import dispatch
from kvtool.kernels.reference.context_model import EXPONENTS, ONE, Conditions

BYTES_OF_CODE = 7
"""At most: 16 bits for a symbol, 19 for what escapes, 15 low bits."""
CODES_IN_BYTE = 1 << 14
"""At most: the largest share that a symbol can have leaves 2**-11 of it."""


@register
@dataclass(frozen=True)
class Context(Stage):
    """Everything becomes ``x`` [n] uint8, of ``codes`` [T, R] int16 and ``exponents`` [T] uint8 among others.

    Token t was quantized with ``step * 2**((exponents[t] - 32) / 2)``, the exponent up to 64. Components come by falling
    variance and are cut into ``bands`` of neighbours, each a stream (``kvtool.kernels.reference.context``) that is
    decoded after those before it, so that the first bands decode alone. The bytes are little-endian uint32 lengths of the rest
    and of each band, then the rest as ``Rans`` leaves it, then the bands.

    For the keys of layers from 0 on, say, the calibration has ``0000.keys.scales`` [R] uint8, log2 of each
    component's mean absolute value as ``8 * log2 + 200``. It may have ``0000.keys.autoregression`` [R, 2] int8, and
    ``tables`` [40, 7, 33] uint8, of both sides and all layers: ``kvtool.codecs.entropy_models.context`` fits them.
    """

    name: ClassVar[str] = "context"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "entropy"

    calibration: Calibration
    side: Literal["keys", "values"] = "keys"
    step: float = 0.05
    bands: int = 4

    def __post_init__(self) -> None:
        self.require(0 < self.step < math.inf, "step", self.step, "a positive number")
        self.require(self.bands in range(1, 256), "bands", self.bands, "1 to 255")

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        scales = torch.tensor([230, 222, 214, 207, 199, 192], dtype=torch.uint8)
        weights = torch.tensor([[90, 30], [60, -20], [30, 0], [0, 64], [0, 0], [-40, 0]], dtype=torch.int8)
        bare = Calibration("klt", {}, {"0002.keys.scales": scales})
        generator = torch.Generator().manual_seed(4)
        tables = torch.randint(0, 256, model.SHAPE, dtype=torch.uint8, generator=generator)
        named = {"0002.values.scales": scales, "0002.values.autoregression": weights, "tables": tables}
        fitted = Calibration("klt", {}, named)
        return cls(bare), cls(fitted, "values", 0.75, 1), cls(bare, step=1e-4, bands=7)

    def plan(self, spec: Spec) -> Spec:
        tokens, _ = self._sizes(spec)
        self._held(spec)
        bounds = [8 + tokens * len(band) * BYTES_OF_CODE for band in self._cut(spec)]
        self.require(max(bounds) < 1 << 32, "bytes of a band", max(bounds), "less than 2**32")
        total = 4 + 4 * self.bands + Rans().plan(self._rest(spec)).nbytes + sum(bounds)
        return spec.with_arrays({"x": Array((total,), torch.uint8, at_most=True)})

    def encode(self, x: Payload, spec: Spec) -> Payload:
        scales, weights, tables = self._held(spec)
        rest = Rans().encode({name: x[name] for name in self._rest(spec).arrays}, self._rest(spec))["x"]
        codes, exponents = x["codes"].cpu(), self._checked(x["exponents"].cpu())
        loudness, sections = torch.full((len(codes),), ONE, dtype=torch.int32), [rest]
        for band in self._cut(spec):
            part = slice(band.start, band.stop)
            conditions = Conditions(exponents, scales[part], weights[part], loudness)
            sections.append(dispatch.context_encode(codes[:, part], conditions, tables))
        lengths = struct.pack(f"<{len(sections)}I", *map(len, sections))
        return {"x": torch.cat([byte_tensor(lengths), *sections])}

    def decode(self, y: Payload, spec: Spec) -> Payload:
        return self.decode_bands(y, spec, self.bands)

    def decode_bands(self, y: Payload, spec: Spec, bands: int) -> Payload:
        """As ``decode``, but only the first ``bands``; codes of the others are 0, and their bytes may be missing."""
        data = y["x"].cpu()
        (n_rest, *lengths), start = read_lengths(data, 1 + self.bands, 0)
        needed = start + n_rest + sum(lengths[:bands])
        if len(data) < needed or (bands >= self.bands and len(data) > needed):
            raise CodecError(f"{self.label}: x: {len(data)} bytes, expected {needed} for {bands} bands")
        tokens, components = self._sizes(spec)
        cut = self._cut(spec)[:bands]
        # Checked before memory is allocated for what the bands claim to hold.
        for band, length in zip(cut, lengths, strict=False):
            if (n := tokens * len(band)) > CODES_IN_BYTE * length:
                raise CodecError(f"{self.label}: x: a band of {length} bytes cannot hold {n} codes")
        inner, section = self._rest(spec), data[start : start + n_rest]
        start += n_rest
        Rans().plan(inner).check({"x": section}, self.label)
        out = dict(Rans().decode({"x": section}, inner))
        scales, weights, tables = self._held(spec)
        exponents = self._checked(out["exponents"])
        codes = torch.zeros(tokens, components, dtype=torch.int16)
        loudness = torch.full((tokens,), ONE, dtype=torch.int32)
        for band, length in zip(cut, lengths, strict=False):
            part, stream = slice(band.start, band.stop), data[start : start + length]
            start += length
            try:
                conditions = Conditions(exponents, scales[part], weights[part], loudness)
                dispatch.context_decode(stream, conditions, tables, codes[:, part])
            except ValueError as error:
                raise CodecError(f"{self.label}: x: {error}") from None
        return {**out, "codes": codes}

    def _sizes(self, spec: Spec) -> tuple[int, int]:
        """Tokens and components."""
        for name, dtype, axes in (("codes", torch.int16, 2), ("exponents", torch.uint8, 1)):
            self.require(name in spec.arrays, "payload", sorted(spec.arrays), f"one with {name}")
            array = spec.arrays[name]
            fits = array.dtype == dtype and len(array.shape) == axes
            self.require(fits, name, (list(array.shape), array.dtype), f"{axes} axes of {dtype}")
        tokens, components = spec.arrays["codes"].shape
        length = spec.arrays["exponents"].shape[0]
        self.require(length == tokens, "length of exponents", length, f"{tokens}, one for each token")
        return tokens, components

    def _held(self, spec: Spec) -> tuple[Tensor, Tensor, Tensor]:
        """Scales in steps [R] int32, weights of autoregression [R, 2] int8, and the tables."""
        components = self._sizes(spec)[1]
        name, calibration = entry(spec.place.first, self.side), self.calibration
        scales = self._first(f"{name}.scales", (components,), torch.uint8)
        weights, roots = torch.zeros(components, 2, dtype=torch.int8), None
        if f"{name}.autoregression" in calibration.tensors:
            weights = self._first(f"{name}.autoregression", (components, 2), torch.int8)
        if "tables" in calibration.tensors:
            roots = calibration.tensor("tables", Array(model.SHAPE, torch.uint8))
        return model.in_steps(scales, self.step), weights, model.cumulative(roots)

    def _first(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The first rows of a calibration's tensor: the last components may not be coded."""
        tensor = self.calibration.tensors.get(name)
        rows = max(shape[0], len(tensor)) if tensor is not None and tensor.ndim else shape[0]
        return self.calibration.tensor(name, Array((rows, *shape[1:]), dtype))[: shape[0]]

    def _cut(self, spec: Spec) -> list[range]:
        components, n = self._sizes(spec)[1], self.bands
        return [range(components * b // n, components * (b + 1) // n) for b in range(n)]

    def _rest(self, spec: Spec) -> Spec:
        return spec.with_arrays({name: array for name, array in spec.arrays.items() if name != "codes"})

    def _checked(self, exponents: Tensor) -> Tensor:
        if len(exponents) and (largest := int(exponents.max())) > EXPONENTS:
            raise CodecError(f"{self.label}: x: exponent {largest}, expected at most {EXPONENTS}")
        return exponents
