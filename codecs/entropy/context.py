"""Transform coefficients under a model that adapts to component and token."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import ClassVar

import torch

from kvtool.codecs.block_coder import read_lengths
from kvtool.codecs.entropy.rans import Rans
from kvtool.codecs.errors import CodecError
from kvtool.codecs.format.container import byte_tensor
from kvtool.codecs.klt.coefficients import BYTES_OF_CODE, CODES_IN_BYTE, Coefficients, examples
from kvtool.codecs.spec import Array, Payload, Spec
from kvtool.codecs.stage import Stage
from kvtool.codecs.stage_registry import register
from kvtool.kernels import dispatch
from kvtool.kernels.reference.context_model import ONE, Conditions


@register
@dataclass(frozen=True)
class Context(Coefficients):
    """As ``Coefficients``, one code after another.

    Components are cut into ``bands`` of neighbours, each a stream (``kvtool.kernels.reference.context``) that is
    decoded after those before it, so that the first bands decode alone. The bytes are little-endian uint32 lengths of the rest
    and of each band, then the rest as ``Rans`` leaves it, then the bands.
    """

    name: ClassVar[str] = "context"
    version: ClassVar[int] = 1

    bands: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.bands in range(1, 256), "bands", self.bands, "1 to 255")

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        bare, fitted = examples()
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

    def _cut(self, spec: Spec) -> list[range]:
        components, n = self._sizes(spec)[1], self.bands
        return [range(components * b // n, components * (b + 1) // n) for b in range(n)]
