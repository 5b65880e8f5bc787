"""Rotation and Lloyd–Max quantization of two sets of channels, the larger ones with one more bit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvtool.codecs.errors import CodecError
from kvtool.codecs.quantize.lloyd_max import LloydMax
from kvtool.codecs.spec import Array, Payload, Spec
from kvtool.codecs.stage import Kind, Stage
from kvtool.codecs.stage_registry import register
from kvtool.codecs.transform.hadamard import Hadamard


@register
@dataclass(frozen=True)
class SplitLloydMax(Stage):
    """The channels of ``x`` [..., H, T, D] in two sets, each rotated and quantized by itself, as in TurboQuant (arXiv
    2504.19874, section 4.3). The ⌊share · D⌋ of each head that are longest over all tokens take ``bits`` + 1 bits, the
    others ``bits``. Stored are

    - ``outlier_channels`` [..., H, D] uint8, 1 for the longest;
    - ``codes_outlier``, ``norm_outlier`` and, with ``sketch``, ``signs_outlier``, ``rest_norm_outlier``: what ``Hadamard``
      and ``LloydMax`` make of them;
    - the same with ``_other`` of the others.

    Raises CodecError for vectors longer than float16's range.
    """

    name: ClassVar[str] = "split-lloyd-max"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "quantize"

    bits: int = 2
    share: float = 0.5
    sketch: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        self.require(self.bits in range(1, 8), "bits", self.bits, "1 to 7")
        self.require(0 < self.share < 1, "share", self.share, "a number between 0 and 1")
        self.require(isinstance(self.sketch, bool), "sketch", self.sketch, "true or false")
        self.require(self.seed in range((1 << 31) - 3), "seed", self.seed, "0 to 2**31 - 4")

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        return cls(), cls(bits=3, share=0.25, sketch=True, seed=4)

    def plan(self, spec: Spec) -> Spec:
        x = self.x_of(spec, "...", "heads", "tokens", "channels")
        *front, _, channels = x.shape
        arrays = {"outlier_channels": Array((*front, channels), torch.uint8, levels=2)}
        for part in self._parts(spec):
            arrays |= {f"{name}_{part.label}": array for name, array in part.planned.arrays.items()}
        return spec.replace("x", arrays, self.name)

    def encode(self, x: Payload, spec: Spec) -> Payload:
        entries = x["x"]
        # In float64, so that nearly equal channels are ordered alike on every machine.
        order = entries.double().norm(dim=-2).argsort(dim=-1, descending=True, stable=True)
        chosen = torch.zeros(order.shape, dtype=torch.uint8, device=order.device)
        chosen.scatter_(-1, order[..., : self._count(spec)], 1)
        out = {**spec.beside_x(x), "outlier_channels": chosen}
        for part, places in zip(self._parts(spec), self._places(chosen, spec), strict=True):
            encoded = part.encode(entries.gather(-1, places))
            out |= {f"{name}_{part.label}": tensor for name, tensor in encoded.items()}
        return out

    def decode(self, y: Payload, spec: Spec) -> Payload:
        array, chosen, count = spec.arrays["x"], y["outlier_channels"], self._count(spec)
        if not ((chosen <= 1).all() and (chosen.sum(-1) == count).all()):
            raise CodecError(
                f"{self.label}: outlier_channels does not mark {count} channels of each head with 1"
            )
        x = torch.empty(array.shape, dtype=array.dtype, device=chosen.device)
        for part, places in zip(self._parts(spec), self._places(chosen, spec), strict=True):
            encoded = {name: y[f"{name}_{part.label}"] for name in part.planned.arrays}
            x.scatter_(-1, places, part.decode(encoded))
        return spec.beside_x(y) | {"x": x}

    def error(self, x: Payload, spec: Spec, inner: float = 0.0) -> float:
        """Measured on ``x``: beyond a code book's ends no bound holds for all vectors."""
        tensor = x["x"]
        if not tensor.numel():
            return inner
        return inner + self.trial(x, spec)[1] + tensor.abs().amax().item() * torch.finfo(torch.float32).eps

    def _count(self, spec: Spec) -> int:
        return int(self.share * spec.arrays["x"].shape[-1])

    def _parts(self, spec: Spec) -> tuple[Part, Part]:
        """The outliers and the others."""
        array, count = spec.arrays["x"], self._count(spec)
        *front, channels = array.shape

        def part(label: str, channels: int, bits: int, seed: int) -> Part:
            quantizer = LloydMax(bits=bits, sketch=self.sketch, seed=seed + 1)
            return Part(
                label, Hadamard(seed=seed), quantizer, Spec({"x": Array((*front, channels), array.dtype)})
            )

        return (
            part("outlier", count, self.bits + 1, self.seed),
            part("other", channels - count, self.bits, self.seed + 2),
        )

    def _places(self, chosen: Tensor, spec: Spec) -> tuple[Tensor, Tensor]:
        """Where the outliers' entries are, and the others': [..., H, T, channels] int64, ascending in each head."""
        *front, tokens, channels = spec.arrays["x"].shape
        order = chosen.argsort(dim=-1, descending=True, stable=True).unsqueeze(-2)
        order = order.expand(*front, tokens, channels)
        count = self._count(spec)
        return order[..., :count], order[..., count:]


@dataclass(frozen=True)
class Part:
    """One of the two sets: how its channels are encoded; ``spec`` is that of its ``x``."""

    label: str
    rotation: Hadamard
    quantizer: LloydMax
    spec: Spec

    @property
    def planned(self) -> Spec:
        return self.quantizer.plan(self.rotation.plan(self.spec))

    def encode(self, x: Tensor) -> Payload:
        rotated = self.rotation.encode({"x": x}, self.spec)
        return self.quantizer.encode(rotated, self.rotation.plan(self.spec))

    def decode(self, y: Payload) -> Tensor:
        rotated = self.quantizer.decode(y, self.rotation.plan(self.spec))
        return self.rotation.decode(rotated, self.spec)["x"]
