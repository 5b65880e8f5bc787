"""Transform coefficients in lanes that are decoded side by side, in chunks of tokens that are decoded apart."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor

from kvtool.codecs.block_coder import read_lengths
from kvtool.codecs.entropy.rans import Rans
from kvtool.codecs.errors import CodecError
from kvtool.codecs.format.container import byte_tensor
from kvtool.codecs.klt.coefficients import BYTES_OF_CODE, Coefficients, examples
from kvtool.codecs.spec import Array, Payload, Spec
from kvtool.codecs.stage import Stage
from kvtool.codecs.stage_registry import register
from kvtool.kernels import dispatch
from kvtool.kernels.reference.wide import HEAD, LANES
from kvtool.kernels.threads import one_thread_each


@register
@dataclass(frozen=True)
class Wide(Coefficients):
    """As ``Coefficients``, with a lane for each component, in chunks of at most ``chunk`` tokens.

    A chunk is a block (``kvtool.kernels.reference.wide``), which needs no other to be decoded. The bytes are little-endian uint32
    lengths of the rest and of each chunk, then the rest as ``Rans`` leaves it, then the chunks.
    """

    name: ClassVar[str] = "wide"
    version: ClassVar[int] = 1
    on_any_device: ClassVar[bool] = True

    chunk: int = 1024

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.chunk in range(1, 1 << 20), "chunk", self.chunk, "1 to 2**20 - 1")

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        bare, fitted = examples()
        return cls(bare), cls(fitted, "values", 0.75, 5), cls(bare, step=1e-4)

    def plan(self, spec: Spec) -> Spec:
        components = self._sizes(spec)[1]
        self._held(spec)
        # Beside what codes take: head, a bit for each component, lengths of groups, a state for each lane.
        fixed = HEAD + components // 8 + 1 + 3 * (components // LANES + 40) + 3 * components
        bounds = [fixed + len(chunk) * components * BYTES_OF_CODE for chunk in self._chunks(spec)]
        self.require(
            max(bounds, default=0) < 1 << 32, "bytes of a chunk", max(bounds, default=0), "less than 2**32"
        )
        total = 4 + 4 * len(bounds) + Rans().plan(self._rest(spec)).nbytes + sum(bounds)
        return spec.with_arrays({"x": Array((total,), torch.uint8, at_most=True)})

    def encode(self, x: Payload, spec: Spec) -> Payload:
        held, rest = self._held(spec), self._rest(spec)
        codes, exponents = x["codes"].cpu(), self._checked(x["exponents"].cpu())

        def coded(chunk: range) -> Tensor:
            part = slice(chunk.start, chunk.stop)
            return dispatch.wide_encode(codes[part], exponents[part], *held)

        sections = [Rans().encode({name: x[name] for name in rest.arrays}, rest)["x"]]
        sections += one_thread_each(coded, self._chunks(spec))
        lengths = struct.pack(f"<{len(sections)}I", *map(len, sections))
        return {"x": torch.cat([byte_tensor(lengths), *sections])}

    def decode(self, y: Payload, spec: Spec) -> Payload:
        return self.decode_tokens(y, spec, None)

    def decode_tokens(self, y: Payload, spec: Spec, tokens: range | None) -> Payload:
        """Codes of chunks that have none of ``tokens`` are 0."""
        data, device = y["x"].cpu(), y["x"].device
        (n_tokens, components), chunks = self._sizes(spec), self._chunks(spec)
        lengths, start = read_lengths(data, 1 + len(chunks), 0)
        if len(data) != start + sum(lengths):
            raise CodecError(f"{self.label}: x: {len(data)} bytes, expected {start + sum(lengths)}")
        rest, *sections = torch.split(data[start:], lengths)
        inner = self._rest(spec)
        Rans().plan(inner).check({"x": rest}, self.label)
        out = dict(Rans().decode({"x": rest}, inner))
        exponents, held = self._checked(out["exponents"]), self._held(spec)
        wanted = range(n_tokens) if tokens is None else tokens
        calls = [
            (chunk, section)
            for chunk, section in zip(chunks, sections, strict=True)
            if chunk.start < wanted.stop and wanted.start < chunk.stop
        ]
        codes = torch.zeros(n_tokens, components, dtype=torch.int16, device=device)

        def decoded(call: tuple[range, Tensor]) -> None:
            chunk, section = call
            part = slice(chunk.start, chunk.stop)
            dispatch.wide_decode(section, exponents[part], *held, codes[part])

        try:
            one_thread_each(decoded, calls)
        except ValueError as error:
            raise CodecError(f"{self.label}: x: {error}") from None
        return {**{name: tensor.to(device) for name, tensor in out.items()}, "codes": codes}

    def _chunks(self, spec: Spec) -> list[range]:
        """Of equal lengths, up to a token."""
        tokens = self._sizes(spec)[0]
        count = -(-tokens // self.chunk)
        edges = [tokens * n // max(count, 1) for n in range(count + 1)]
        return [range(*pair) for pair in pairwise(edges)]
