"""The tokens at the very first positions apart: attention falls back on them, and they are unlike all others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kvtool.codecs.float16 import saturated
from kvtool.codecs.spec import Array, Payload, Spec, of_tokens
from kvtool.codecs.stage import Kind, Stage
from kvtool.codecs.stage_registry import register


@register
@dataclass(frozen=True)
class Sinks(Stage):
    """``x`` [..., T, D] loses its tokens at positions below ``below``, of which a segment after a prefix has none.

    Stored beside it are ``sinks`` [..., n, D] int8 and ``sink_scale`` [..., n, 1] float32: each token's entries in
    steps of its largest ÷ 127 (attention sinks: Xiao et al., 2023, arXiv 2309.17453).
    """

    name: ClassVar[str] = "sinks"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "transform"
    on_any_device: ClassVar[bool] = True

    below: int = 4

    def __post_init__(self) -> None:
        self.require(self.below in range(1 << 16), "below", self.below, "0 to 2**16 - 1")

    def plan(self, spec: Spec) -> Spec:
        x = self.x_of(spec, "...", "heads", "tokens", "channels")
        start, missing = spec.place.start, spec.place.pruned
        self.require(start is not None, "first position", None, "known")
        self.require(
            not missing or (start or 0) >= self.below,
            "below",
            self.below,
            f"at most {start} in a pruned segment",
        )
        n, outer, channels = self._n(spec), x.shape[:-2], x.shape[-1]
        parts = {
            "x": Array((*outer, x.shape[-2] - n, channels), x.dtype),
            "sinks": Array((*outer, n, channels), torch.int8),
            "sink_scale": Array((*outer, n, 1), torch.float32),
        }
        return spec.replace("x", parts, self.name)

    def encode(self, x: Payload, spec: Spec) -> Payload:
        n = self._n(spec)
        first = x["x"][..., :n, :].float()
        largest = (
            first.abs().amax(-1, keepdim=True) if first.numel() else first.new_zeros(*first.shape[:-1], 1)
        )
        scale = largest / 127
        codes = (first / torch.where(scale > 0, scale, 1)).round().to(torch.int8)
        return {**x, "x": x["x"][..., n:, :].contiguous(), "sinks": codes, "sink_scale": scale}

    def decode(self, y: Payload, spec: Spec) -> Payload:
        array = spec.arrays["x"]
        if not self._n(spec):
            return spec.beside_x(y) | {"x": y["x"].to(array.dtype)}
        first = saturated(y["sinks"].float() * y["sink_scale"], array.dtype)
        return spec.beside_x(y) | {"x": torch.cat([first, y["x"].to(array.dtype)], dim=-2)}

    def inputs_after(self, inputs: Payload, spec: Spec) -> Payload:
        return of_tokens(inputs, slice(self._n(spec), None))

    def tokens_after(self, tokens: range, spec: Spec) -> range | None:
        n = self._n(spec)
        return range(max(tokens.start - n, 0), max(tokens.stop - n, 0))

    def error(self, x: Payload, spec: Spec, inner: float = 0.0) -> float:
        n, tensor = self._n(spec), x["x"]
        if not n or not tensor.numel():
            return inner
        largest = tensor[..., :n, :].abs().amax().item()
        return max(inner, largest / 254 + 2 * largest * torch.finfo(tensor.dtype).eps)

    def _n(self, spec: Spec) -> int:
        """How many of the first tokens are below."""
        return min(max(self.below - (spec.place.start or 0), 0), spec.arrays["x"].shape[-2])
