"""Channels on a common scale, for quantizers whose scales are per token."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvtool.codecs.float16 import FLOAT16, saturated
from kvtool.codecs.spec import Array, Payload, Spec
from kvtool.codecs.stage import Kind, Stage
from kvtool.codecs.stage_registry import register

FLOAT32_EPS = torch.finfo(torch.float32).eps


@dataclass(frozen=True)
class ChannelScale(Stage):
    """``x`` [..., T, D] becomes float32, each channel divided by its factor.

    The factors, [..., 1, D] float16, are stored under the name ``side``. Subclasses say what they are;
    they are kept within float16's normal range, so that none is 0.
    """

    kind: ClassVar[Kind] = "transform"
    side: ClassVar[str]

    @abstractmethod
    def factors(self, x: Payload) -> Tensor:
        """The divisor of each channel: [..., 1, D] float32, for at least one token."""

    def plan(self, spec: Spec) -> Spec:
        x = self.x_of(spec, "...", "heads", "tokens", "channels")
        factors = Array((*x.shape[:-2], 1, x.shape[-1]), torch.float16)
        return spec.replace("x", {"x": Array(x.shape, torch.float32), self.side: factors}, self.name)

    def encode(self, x: Payload, spec: Spec) -> Payload:
        factors = self._stored(x)
        return spec.beside_x(x) | {"x": x["x"].float() / factors.float(), self.side: factors}

    def decode(self, y: Payload, spec: Spec) -> Payload:
        x = saturated(y["x"] * y[self.side].float(), spec.arrays["x"].dtype)
        return spec.beside_x(y) | {"x": x}

    def error(self, x: Payload, spec: Spec, inner: float = 0.0) -> float:
        """``inner`` times the largest factor, and what float32 and x's own dtype round away."""
        tensor = x["x"]
        if not tensor.numel():
            return inner
        amplified = inner * self._stored(x).amax().item()
        own = torch.finfo(tensor.dtype)
        largest = tensor.abs().amax().item() + amplified
        return amplified + largest * (2 * FLOAT32_EPS + own.eps) + own.smallest_normal

    def _stored(self, x: Payload) -> Tensor:
        tensor = x["x"]
        if not tensor.shape[-2]:
            return tensor.new_ones((*tensor.shape[:-2], 1, tensor.shape[-1]), dtype=torch.float16)
        return self.factors(x).clamp(FLOAT16.smallest_normal, FLOAT16.max).to(torch.float16)


@register
@dataclass(frozen=True)
class Normalize(ChannelScale):
    """Channels divided by the root of their largest magnitude (ZipCache, arXiv 2405.14256, algorithm 1).

    The channels that share a token's scale then differ in range by the root of what they did, and so do their
    errors: small channels are spared what large ones would cost them, and large ones pay for it in part.
    """

    name: ClassVar[str] = "normalize"
    version: ClassVar[int] = 1
    side: ClassVar[str] = "normalizer"

    def factors(self, x: Payload) -> Tensor:
        return x["x"].float().abs().amax(-2, keepdim=True).sqrt()
