"""bitsandbytes' data types: blocks under their largest magnitude, entries rounded to a code book."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

from kvtool.codecs.float16 import FLOAT16, SMALLEST, to_float16, window_dtype
from kvtool.codecs.spec import Array, Payload, Spec, check_codes
from kvtool.codecs.stage import Kind, Stage
from kvtool.codecs.stage_registry import register

_NF4 = (
    "-1 -0.6961928009986877 -0.5250730514526367 -0.39491748809814453 -0.28444138169288635 "
    "-0.18477343022823334 -0.09105003625154495 0 0.07958029955625534 0.16093020141124725 0.24611230194568634 "
    "0.33791524171829224 0.44070982933044434 0.5626170039176941 0.7229568362236023 1"
)


@register
@dataclass(frozen=True)
class Blockwise(Stage):
    """``x`` of n entries, float32, float16 or bfloat16, becomes

    - ``codes``, of x's shape, uint8: places in ``code_book(data_type)``, 4 bits each for ``"nf4"``
      (Dettmers et al., 2023, arXiv 2305.14314), 8 for ``"int8"`` (Dettmers et al., 2021, arXiv 2110.02861);
    - ``absmax`` [⌈n/block⌉], the largest magnitude of each ``block`` entries that follow one another in memory,
      in x's own dtype where that has 16 bits, else float16; the last block may be short.

    An entry is read back as ``code_book[code] * absmax``. Raises CodecError for entries beyond float16's range
    where x is float32.

    The codes are those of bitsandbytes, whose own functions are not called: they choose an implementation by
    the machine, and that for CPUs settles near-ties from a table.
    """

    name: ClassVar[str] = "blockwise"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "quantize"

    data_type: Literal["nf4", "int8"] = "nf4"
    block: int = 64

    def __post_init__(self) -> None:
        self.require(self.data_type in ("nf4", "int8"), "data_type", self.data_type, "'nf4' or 'int8'")
        self.require(self.block in range(1, 1 << 31), "block", self.block, "1 to 2**31 - 1")

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        return cls(), cls(data_type="int8", block=256), cls(block=7)

    def plan(self, spec: Spec) -> Spec:
        x = self.x_of(spec, "...", "entries")
        arrays = {
            "codes": Array(x.shape, torch.uint8, levels=len(code_book(self.data_type))),
            "absmax": Array((-(-x.numel // self.block),), window_dtype(x.dtype)),
        }
        return spec.replace("x", arrays, self.name)

    def encode(self, x: Payload, spec: Spec) -> Payload:
        blocks = self._blocks(x["x"].float())
        absmax = blocks.abs().amax(1)
        stored = to_float16(self, "largest magnitude", absmax) if x["x"].dtype == torch.float32 else absmax
        book = code_book(self.data_type)
        middles = ((book[:-1] + book[1:]) / 2).to(blocks.device)
        # A block of zeros would be 0 / 0, which is NaN.
        codes = torch.bucketize(blocks / absmax.clamp(min=1e-38)[:, None], middles, out_int32=True)
        codes = codes.to(torch.uint8).flatten()[: x["x"].numel()].view(x["x"].shape)
        return spec.beside_x(x) | {"codes": codes, "absmax": stored.to(window_dtype(x["x"].dtype))}

    def decode(self, y: Payload, spec: Spec) -> Payload:
        array, codes = spec.arrays["x"], y["codes"]
        book = code_book(self.data_type).to(codes.device)
        check_codes(f"{self.label}: codes", codes, len(book))
        entries = self._blocks(book.index_select(0, codes.flatten().int()))
        x = entries.mul_(y["absmax"].float()[:, None]).flatten()[: array.numel]
        return spec.beside_x(y) | {"x": x.to(array.dtype).view(array.shape)}

    def error(self, x: Payload, spec: Spec, inner: float = 0.0) -> float:
        """Half the code book's widest gap, or how far it ends before -1; rounded in 16 bits and x's dtype."""
        tensor = x["x"]
        if not tensor.numel():
            return inner
        book = code_book(self.data_type)
        gap = max((book.diff().max() / 2).item(), 1 + book[0].item())
        own = torch.finfo(tensor.dtype)
        rounding = max(own.eps, FLOAT16.eps) if tensor.dtype == torch.float32 else own.eps
        return inner + tensor.abs().amax().item() * (gap + rounding) + SMALLEST

    def _blocks(self, entries: Tensor) -> Tensor:
        """``entries`` as [blocks, block]; zeros fill the last. A block is no longer than all entries."""
        flat = entries.flatten()
        block = min(self.block, max(len(flat), 1))
        return pad(flat, (0, -len(flat) % block)).view(-1, block)


@lru_cache
def code_book(data_type: str) -> Tensor:
    """The levels that entries divided by their block's largest magnitude are rounded to: ascending, float32.

    ``"nf4"``: 16 quantiles of the normal distribution. ``"int8"``: the 256 of dynamic tree quantization
    (arXiv 1511.04561), sign, exponent and as many bits of fraction as a small exponent leaves.
    """
    if data_type == "nf4":
        return torch.tensor([float(number) for number in _NF4.split()])
    magnitudes = [
        (0.1 + 0.9 * (2 * i + 1) / (2 << bits)) / 10 ** (6 - bits)
        for bits in range(7)
        for i in range(1 << bits)
    ]
    return torch.tensor(sorted([*(-m for m in magnitudes), 0.0, *magnitudes, 1.0]))
