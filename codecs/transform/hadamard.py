"""A random rotation that leaves no channel larger than the others: signs, then Walsh–Hadamard."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from kvtool.codecs.errors import CodecError
from kvtool.codecs.float16 import saturated
from kvtool.codecs.spec import Array, Payload, Spec
from kvtool.codecs.stage import Kind, Stage
from kvtool.codecs.stage_registry import register
from kvtool.codecs.transform.channels import join_heads, split_heads
from kvtool.kernels import dispatch


@register
@dataclass(frozen=True)
class Hadamard(Stage):
    """``x`` [..., H, T, D] becomes float32 of the same shape: ``rotate`` of each token's channels.

    The channels of ``heads`` neighbouring heads are rotated together; the last heads may be fewer. Raises
    CodecError for entries so large that their sum passes float32's range.
    """

    name: ClassVar[str] = "hadamard"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "transform"

    seed: int = 0
    heads: int = 1

    def __post_init__(self) -> None:
        self.require(self.seed in range(1 << 31), "seed", self.seed, "0 to 2**31 - 1")
        self.require(self.heads in range(1, 1 << 16), "heads", self.heads, "1 to 65535")

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        return cls(), cls(seed=7, heads=2)

    def plan(self, spec: Spec) -> Spec:
        x = self.x_of(spec, "...", "heads", "tokens", "channels")
        return spec.replace("x", {"x": Array(x.shape, torch.float32)}, self.name)

    def encode(self, x: Payload, spec: Spec) -> Payload:
        rows = [rotate(rows, self.seed) for rows in split_heads(x["x"], self.heads)]
        rotated = join_heads(rows, spec.arrays["x"].shape)
        if not torch.isfinite(rotated).all():
            raise CodecError(f"{self.label}: entries too large to be summed in float32")
        return {**x, "x": rotated}

    def decode(self, y: Payload, spec: Spec) -> Payload:
        array = spec.arrays["x"]
        rows = [unrotate(rows, self.seed) for rows in split_heads(y["x"], self.heads)]
        x = saturated(join_heads(rows, array.shape), array.dtype)
        return spec.beside_x(y) | {"x": x}

    def error(self, x: Payload, spec: Spec, inner: float = 0.0) -> float:
        """All of a row's errors may fall on one entry; each sum of a transform rounds a row by float32's ε."""
        tensor = x["x"]
        if not tensor.numel():
            return inner
        n = min(self.heads, tensor.shape[-3]) * tensor.shape[-1]
        rows = split_heads(tensor, self.heads)
        longest: float = max(part.double().norm(dim=-1).amax().item() for part in rows)
        spread = inner * math.sqrt(n)
        sums = 4 * (n.bit_length() + 2) * torch.finfo(torch.float32).eps * (longest + spread)
        own = torch.finfo(tensor.dtype)
        largest = tensor.abs().amax().item()
        return spread + sums + (largest + spread + sums) * own.eps + own.smallest_normal * own.eps


def rotate(rows: Tensor, seed: int) -> Tensor:
    """``rows`` [..., n] turned by an orthonormal matrix that follows from n and ``seed`` alone: float32.

    Signs are changed at random, then the Walsh–Hadamard transform is taken. Where n is no power of two, that
    is done to the first 2**k entries and then, with other signs, to the last 2**k, for the largest 2**k < n.
    """
    out = rows.float().reshape(rows.numel() // max(rows.shape[-1], 1), rows.shape[-1]).clone()
    for part, signs in _passes(out, seed):
        signed = part * signs
        dispatch.hadamard(signed, signed)
        part.copy_(signed)
    return out.view(rows.shape)


def unrotate(rows: Tensor, seed: int) -> Tensor:
    """Undo ``rotate``: ``rows`` [..., n] turned back, float32."""
    out = rows.float().reshape(rows.numel() // max(rows.shape[-1], 1), rows.shape[-1]).clone()
    for part, signs in reversed(_passes(out, seed)):
        turned = part.contiguous()
        dispatch.hadamard(turned, turned)
        torch.mul(turned, signs, out=part)
    return out.view(rows.shape)


def _passes(rows: Tensor, seed: int) -> list[tuple[Tensor, Tensor]]:
    """The columns of ``rows`` [N, n] that each transform works on, and their signs."""
    n = rows.shape[1]
    if not rows.numel():
        return []
    size = 1 << (n.bit_length() - 1)
    starts = [0] if size == n else [0, n - size]
    signs = torch.split(_signs(seed, len(starts) * size).to(rows.device), size)
    return [(rows[:, start : start + size], s) for start, s in zip(starts, signs, strict=True)]


@lru_cache(maxsize=64)
def _signs(seed: int, count: int) -> Tensor:
    # NumPy promises the raw bits of PCG64 for good, unlike the values of its or torch's distributions.
    bits = np.random.PCG64(seed).random_raw(count) >> np.uint64(63)
    return torch.from_numpy(1.0 - 2.0 * bits.astype(np.float32))
