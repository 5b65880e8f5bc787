"""Keys as they were before rotary position embeddings: alike from token to token, channel by channel."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvtool.codecs.errors import CodecError
from kvtool.codecs.float16 import saturated
from kvtool.codecs.rope import turn
from kvtool.codecs.spec import Array, Payload, Spec
from kvtool.codecs.stage import Kind, Stage
from kvtool.codecs.stage_registry import register


@register
@dataclass(frozen=True)
class Unrope(Stage):
    """Keys ``x`` [H, T, D] or [L, H, T, D] become float32 of the same shape, without their rotation.

    How each layer's keys were rotated is ``spec.place.ropes``; channels that were not are passed on. Decoding
    rotates by the same angles and rounds to x's own dtype. Raises CodecError where the rotations are unknown or
    are of more channels than there are, and for positions from which on the model rotates otherwise.
    """

    name: ClassVar[str] = "unrope"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "transform"
    on_any_device: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({"positions"})

    def plan(self, spec: Spec) -> Spec:
        x = self.x_of(spec, "...", "heads", "tokens", "channels")
        self.require(len(x.shape) <= 4, "shape of x", list(x.shape), "[(layers,) heads, tokens, channels]")
        ropes = spec.place.ropes
        if not ropes:
            raise CodecError(
                f"{self.label}: how the keys were rotated is not known; remove the document, collect "
                "and prefill it again (kvtool rm, gc, prefill), or take a recipe that leaves them rotated if the model "
                "has no rotary embeddings or its own kind of them"
            )
        layers = 1 if len(x.shape) == 3 else x.shape[0]
        self.require(len(ropes) == layers, "number of rotations", len(ropes), f"{layers}, one for each layer")
        for rope in ropes:
            end = rope.start + 2 * len(rope.inv_freq)
            self.require(end <= x.shape[-1], "end of the rotated channels", end, f"at most {x.shape[-1]}")
        return spec.replace("x", {"x": Array(x.shape, torch.float32)}, self.name)

    def encode(self, x: Payload, spec: Spec) -> Payload:
        for rope, positions in zip(spec.place.ropes, _by_layer(x["positions"], 1), strict=True):
            last = int(positions.max()) if positions.numel() else 0
            if rope.up_to is not None and last >= rope.up_to:
                raise CodecError(
                    f"{self.label}: keys reach position {last}, and from {rope.up_to} on the model "
                    "rotates otherwise; prefill again in shorter segments, or take a recipe that leaves them rotated"
                )
        bare = _turned(x["x"], x["positions"], spec, undo=True)
        if not torch.isfinite(bare).all():
            raise CodecError(f"{self.label}: entries too large to be rotated in float32")
        return spec.beside_x(x) | {"x": bare}

    def decode(self, y: Payload, spec: Spec) -> Payload:
        array = spec.arrays["x"]
        x = saturated(_turned(y["x"], y["positions"], spec, undo=False), array.dtype)
        return spec.beside_x(y) | {"x": x}

    def tokens_after(self, tokens: range, spec: Spec) -> range | None:
        return tokens

    def error(self, x: Payload, spec: Spec, inner: float = 0.0) -> float:
        """Both errors of a pair may fall on one channel; each way rounds a product and a sum."""
        tensor = x["x"]
        if not tensor.numel():
            return inner
        scaling = max(rope.scaling for rope in spec.place.ropes)
        spread = inner * max(1.0, math.sqrt(2) * scaling)
        largest = tensor.abs().amax().item()
        turns = 16 * torch.finfo(torch.float32).eps * (largest + spread)
        tiny = torch.finfo(tensor.dtype).smallest_normal * max(1.0, scaling)
        return spread + turns + (largest + spread + turns) * torch.finfo(tensor.dtype).eps + tiny


def _by_layer(tensor: Tensor, ndim: int) -> tuple[Tensor, ...]:
    """A group's tensor, layer by layer; that of a single layer has ``ndim`` dimensions."""
    return (tensor,) if tensor.ndim == ndim else tensor.unbind(0)


def _turned(x: Tensor, positions: Tensor, spec: Spec, *, undo: bool) -> Tensor:
    """``x`` with each layer's rotation taken back or applied, as new float32."""
    out = x.to(torch.float32, copy=True, memory_format=torch.contiguous_format)
    for rope, keys, where in zip(spec.place.ropes, _by_layer(out, 3), _by_layer(positions, 1), strict=True):
        turn(keys, rope, where, scaling=rope.scaling, undo=undo)
    return out
