"""Two neighbouring layers as one, where they point the same way."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvtool.codecs.errors import CodecError
from kvtool.codecs.float16 import saturated, to_float16, to_window, window_dtype
from kvtool.codecs.spec import Array, Payload, Spec
from kvtool.codecs.stage import Kind, Stage
from kvtool.codecs.stage_registry import register


@register
@dataclass(frozen=True)
class MergeLayers(Stage):
    """``x`` [2, H, T, D] of two layers from the model's ``start`` on, a fraction of its depth, becomes

    - ``x`` [H, T, D] float16, the direction that both layers' vectors share, of length 1: ``t`` of the way
      along the arc from the lower layer's to the upper one's (SLERP), as in MiniCache (arXiv 2405.14366);
    - ``magnitude`` [2, H, T] float16, the length of each layer's own vectors;
    - ``retained`` [2, H, n, D], the n = ⌈retained · T⌉ tokens whose directions differ most, unmerged, in x's
      own dtype where that has 16 bits, else float16; the heads' mean angle is what counts;
    - ``retained_index`` [n] int32, ascending, which tokens these are.

    Lower layers, and a layer that has no second one, are laid side by side instead: ``x`` [L · H, T, D] in its
    own dtype, and nothing beside it. Raises CodecError for vectors longer than float16's range.
    """

    name: ClassVar[str] = "merge-layers"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "transform"

    start: float = 0.5
    t: float = 0.6
    retained: float = 0.05

    def __post_init__(self) -> None:
        for field in ("start", "t", "retained"):
            value = getattr(self, field)
            self.require(0 <= value <= 1, field, value, "a number from 0 to 1")

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        return cls(), cls(t=0.3, retained=0.5), cls(retained=0.0), cls(start=1.0)

    def plan(self, spec: Spec) -> Spec:
        x = self.x_of(spec, "layers", "heads", "tokens", "channels")
        self.require(x.shape[0] in (1, 2), "layers of x", x.shape[0], "1 or 2")
        layers, heads, tokens, channels = x.shape
        if not self._merges(spec):
            return spec.replace("x", {"x": Array((layers * heads, tokens, channels), x.dtype)}, self.name)
        count = self._count(tokens)
        arrays = {
            "x": Array((heads, tokens, channels), torch.float16),
            "magnitude": Array((2, heads, tokens), torch.float16),
            "retained": Array((2, heads, count, channels), window_dtype(x.dtype)),
            "retained_index": Array((count,), torch.int32),
        }
        return spec.replace("x", arrays, self.name)

    def encode(self, x: Payload, spec: Spec) -> Payload:
        rest = spec.beside_x(x)
        if not self._merges(spec):
            return rest | {"x": x["x"].flatten(0, 1).contiguous()}
        # Lengths in float64, since the square of a bfloat16 may be beyond float32.
        vectors = x["x"].double()
        units = _units(vectors)
        angle = (units[0] * units[1]).sum(-1).clamp(-1, 1).acos()
        furthest = angle.mean(0).sort(descending=True, stable=True).indices
        index = furthest[: self._count(angle.shape[1])].sort().values
        return rest | {
            "x": self._direction(units, angle).half(),
            "magnitude": to_float16(self, "length of a vector", vectors.norm(dim=-1)),
            "retained": to_window(self, "retained token's entry", x["x"][:, :, index]),
            "retained_index": index.to(torch.int32),
        }

    def decode(self, y: Payload, spec: Spec) -> Payload:
        array = spec.arrays["x"]
        rest = spec.beside_x(y)
        if not self._merges(spec):
            return rest | {"x": y["x"].reshape(array.shape)}
        index, tokens = y["retained_index"].long(), array.shape[2]
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < tokens:
            held = f"{int(index.min())} to {int(index.max())}"
            raise CodecError(f"{self.label}: retained_index holds {held}, expected 0 to {tokens - 1}")
        x = saturated(y["magnitude"][..., None].float() * y["x"].float(), array.dtype)
        return rest | {"x": x.index_copy_(2, index, y["retained"].to(array.dtype))}

    def error(self, x: Payload, spec: Spec, inner: float = 0.0) -> float:
        """The error on ``x``, ``inner`` as often as the longest vector is long, and an ulp."""
        tensor = x["x"]
        if not tensor.numel() or not self._merges(spec):
            return inner
        encoded, own, largest = self.trial(x, spec)
        amplified = inner * encoded["magnitude"].amax().item()
        return own + amplified + (largest + amplified) * torch.finfo(tensor.dtype).eps

    def _merges(self, spec: Spec) -> bool:
        return spec.arrays["x"].shape[0] == 2 and spec.place.first >= self.start * spec.place.total

    def _count(self, tokens: int) -> int:
        return math.ceil(self.retained * tokens)

    def _direction(self, units: Tensor, angle: Tensor) -> Tensor:
        """The unit vectors [H, T, D] between ``units`` [2, H, T, D], which are ``angle`` [H, T] apart."""
        # On the line between them where the arc is as good as straight, or undefined between opposites.
        straight = angle.sin() < 2.0**-20
        lower = torch.where(straight, 1 - self.t, ((1 - self.t) * angle).sin())
        upper = torch.where(straight, self.t, (self.t * angle).sin())
        return _units(lower[..., None] * units[0] + upper[..., None] * units[1])


def _units(vectors: Tensor) -> Tensor:
    """``vectors`` [..., D] at length 1; 0 stays 0."""
    length: Tensor = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    return vectors / length.clamp(min=torch.finfo(vectors.dtype).tiny)
