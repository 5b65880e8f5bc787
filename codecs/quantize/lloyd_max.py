"""Lloyd–Max quantization of vectors whose entries are as normally distributed ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import torch
from torch import Tensor

from kvtool.codecs.float16 import SMALLEST, saturated, to_float16
from kvtool.codecs.spec import Array, Payload, Spec, check_codes
from kvtool.codecs.stage import Kind, Stage
from kvtool.codecs.stage_registry import register
from kvtool.codecs.transform.hadamard import rotate, unrotate

_UPPER_HALVES = (
    "0.7979",
    "0.4528 1.5104",
    "0.2451 0.7560 1.3439 2.1519",
    "0.1284 0.3880 0.6568 0.9423 1.2562 1.6180 2.0690 2.7326",
    "0.0659 0.1981 0.3314 0.4667 0.6049 0.7471 0.8946 1.0488 1.2118 1.3863 1.5762 1.7872 2.0287 2.3177 "
    "2.6911 3.2607",
    "0.0334 0.1003 0.1673 0.2346 0.3022 0.3703 0.4389 0.5083 0.5785 0.6497 0.7219 0.7955 0.8705 0.9472 "
    "1.0257 1.1065 1.1897 1.2758 1.3651 1.4583 1.5558 1.6586 1.7675 1.8840 2.0096 2.1468 2.2990 2.4713 "
    "2.6723 2.9174 3.2404 3.7441",
    "0.0168 0.0505 0.0842 0.1179 0.1516 0.1855 0.2193 0.2533 0.2874 0.3216 0.3559 0.3903 0.4249 0.4597 "
    "0.4947 0.5298 0.5652 0.6008 0.6367 0.6728 0.7093 0.7460 0.7831 0.8206 0.8585 0.8967 0.9354 0.9746 "
    "1.0143 1.0545 1.0953 1.1367 1.1788 1.2216 1.2652 1.3095 1.3548 1.4009 1.4481 1.4964 1.5459 1.5967 "
    "1.6489 1.7027 1.7581 1.8154 1.8748 1.9364 2.0006 2.0677 2.1380 2.2120 2.2903 2.3736 2.4628 2.5590 "
    "2.6639 2.7795 2.9090 3.0572 3.2319 3.4474 3.7349 4.1897",
    "0.0084 0.0253 0.0422 0.0591 0.0760 0.0930 0.1099 0.1268 0.1437 0.1607 0.1777 0.1947 0.2117 0.2287 "
    "0.2458 0.2628 0.2799 0.2971 0.3142 0.3314 0.3486 0.3659 0.3832 0.4005 0.4179 0.4353 0.4527 0.4703 "
    "0.4878 0.5054 0.5231 0.5408 0.5585 0.5764 0.5942 0.6122 0.6302 0.6483 0.6664 0.6847 0.7030 0.7214 "
    "0.7398 0.7584 0.7770 0.7957 0.8145 0.8335 0.8525 0.8716 0.8908 0.9102 0.9296 0.9492 0.9689 0.9887 "
    "1.0086 1.0287 1.0489 1.0693 1.0898 1.1105 1.1313 1.1523 1.1735 1.1948 1.2163 1.2380 1.2599 1.2821 "
    "1.3044 1.3269 1.3497 1.3727 1.3959 1.4194 1.4432 1.4673 1.4916 1.5162 1.5411 1.5664 1.5920 1.6180 "
    "1.6443 1.6710 1.6981 1.7256 1.7536 1.7820 1.8110 1.8404 1.8704 1.9009 1.9321 1.9639 1.9963 2.0295 "
    "2.0635 2.0982 2.1339 2.1704 2.2080 2.2466 2.2864 2.3274 2.3697 2.4135 2.4590 2.5061 2.5553 2.6065 "
    "2.6602 2.7165 2.7759 2.8387 2.9055 2.9769 3.0537 3.1371 3.2285 3.3298 3.4441 3.5756 3.7317 3.9256 "
    "4.1866 4.6035",
)
"""The code books' positive halves for 1 to 8 bits; the others mirror them."""


@register
@dataclass(frozen=True)
class LloydMax(Stage):
    """``x`` [..., T, D] float32, float16 or bfloat16 becomes

    - ``codes`` [..., T, D] uint8, ``bits`` bits each: the place of an entry, over the root of its vector's
      mean square, in the code book that has the least mean square error on normally distributed numbers
      (Max, 1960; Lloyd, 1982);
    - ``norm`` [..., T] float16, each vector's length;

    and, with ``sketch``, of each vector's rest that the codes leave

    - ``signs`` [..., T, D] uint8, 1 bit each: the signs of ``rotate(rest, seed)``;
    - ``rest_norm`` [..., T] float16, its length.

    The sketch is QJL (Zandieh et al., 2024, arXiv 2406.03482): it makes the expected inner product with any
    vector exact, over the random rotations. Raises CodecError for vectors longer than float16's range.
    """

    name: ClassVar[str] = "lloyd-max"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "quantize"

    bits: int = 2
    sketch: bool = False
    seed: int = 1

    def __post_init__(self) -> None:
        self.require(self.bits in range(1, 9), "bits", self.bits, "1 to 8")
        self.require(isinstance(self.sketch, bool), "sketch", self.sketch, "true or false")
        self.require(self.seed in range(1 << 31), "seed", self.seed, "0 to 2**31 - 1")

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        return cls(), cls(bits=1), cls(bits=8), cls(bits=3, sketch=True)

    def plan(self, spec: Spec) -> Spec:
        x = self.x_of(spec, "...", "tokens", "channels")
        arrays = {
            "codes": Array(x.shape, torch.uint8, levels=1 << self.bits),
            "norm": Array(x.shape[:-1], torch.float16),
        }
        if self.sketch:
            arrays["signs"] = Array(x.shape, torch.uint8, levels=2)
            arrays["rest_norm"] = Array(x.shape[:-1], torch.float16)
        return spec.replace("x", arrays, self.name)

    def encode(self, x: Payload, spec: Spec) -> Payload:
        entries = x["x"].float()
        out = spec.beside_x(x)
        out["norm"] = to_float16(self, "length of a vector", entries.norm(dim=-1))
        scale = _per_entry(out["norm"], entries.shape[-1]).clamp_(min=SMALLEST)
        book = code_book(self.bits)
        middles = ((book[:-1] + book[1:]) / 2).to(entries.device)
        out["codes"] = torch.bucketize(entries / scale, middles, out_int32=True).to(torch.uint8)
        if self.sketch:
            rest = entries - self._decode_codes(out)
            out["signs"] = (rotate(rest, self.seed) >= 0).to(torch.uint8)
            out["rest_norm"] = to_float16(self, "length of a rest", rest.norm(dim=-1))
        return out

    def decode(self, y: Payload, spec: Spec) -> Payload:
        array = spec.arrays["x"]
        for name, levels in (("codes", 1 << self.bits), ("signs", 2)):
            if name in y:
                check_codes(f"{self.label}: {name}", y[name], levels)
        x = self._decode_codes(y)
        if self.sketch:
            signs = unrotate(y["signs"].float().mul_(2).sub_(1), self.seed)
            # The entries of a random unit vector have a mean magnitude of √(2 / πD).
            x += signs * (_per_entry(y["rest_norm"], x.shape[-1]) * math.sqrt(math.pi / 2))
        return spec.beside_x(y) | {"x": saturated(x, array.dtype)}

    def error(self, x: Payload, spec: Spec, inner: float = 0.0) -> float:
        """Measured on ``x``: beyond a code book's ends no bound holds for all vectors."""
        tensor = x["x"]
        if not tensor.numel():
            return inner
        return inner + self.trial(x, spec)[1] + tensor.abs().amax().item() * torch.finfo(torch.float32).eps

    def _decode_codes(self, y: Payload) -> Tensor:
        codes = y["codes"]
        entries = code_book(self.bits).to(codes.device).index_select(0, codes.flatten().int())
        return entries.view(codes.shape).mul_(_per_entry(y["norm"], codes.shape[-1]))


@lru_cache
def code_book(bits: int) -> Tensor:
    """The ``2 ** bits`` numbers, ascending, that entries are rounded to: float32."""
    upper = torch.tensor([float(number) for number in _UPPER_HALVES[bits - 1].split()])
    return torch.cat([-upper.flip(0), upper])


def _per_entry(norm: Tensor, channels: int) -> Tensor:
    """The root of the mean square of vectors of length ``norm`` [..., T]: [..., T, 1] float32."""
    return norm.float().unsqueeze(-1) / math.sqrt(max(channels, 1))
