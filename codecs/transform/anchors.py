"""Differences from an anchor token nearby, since neighbouring tokens' keys and values are alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvtool.codecs.float16 import FLOAT16, SMALLEST, saturated, to_float16
from kvtool.codecs.spec import Array, Payload, Spec, of_tokens
from kvtool.codecs.stage import Kind, Stage
from kvtool.codecs.stage_registry import register


@register
@dataclass(frozen=True)
class Anchors(Stage):
    """``x`` [H, T, D] becomes, with A = ⌈T / group⌉ anchors, the first token of each ``group``,

    - ``anchors`` [H, A, D] uint8, 8 bits each, symmetric, and ``anchor_scale`` [A] float16, a step for each;
    - ``x`` [H, T - A, D] float32, the other tokens minus their anchor as it is read back.

    Raises CodecError for anchors beyond float16's range.
    """

    name: ClassVar[str] = "anchors"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "transform"
    on_any_device: ClassVar[bool] = True

    group: int = 10

    def __post_init__(self) -> None:
        self.require(self.group in range(2, 1 << 20), "group", self.group, "2 to 2**20 - 1")

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        return cls(), cls(group=3)

    def plan(self, spec: Spec) -> Spec:
        x = self.x_of(spec, "heads", "tokens", "channels")
        heads, tokens, channels = x.shape
        anchors = -(-tokens // self.group)
        arrays = {
            "anchors": Array((heads, anchors, channels), torch.uint8, levels=255),
            "anchor_scale": Array((anchors,), torch.float16),
            "x": Array((heads, tokens - anchors, channels), torch.float32),
        }
        return spec.replace("x", arrays, self.name)

    def encode(self, x: Payload, spec: Spec) -> Payload:
        entries = x["x"].float()
        anchor, others, of = self._split(entries.shape[1])
        heads = entries[:, anchor]
        largest = heads.abs().amax((0, 2)) if heads.numel() else heads.new_zeros(len(anchor))
        scale = to_float16(self, "step of an anchor", largest / 127)
        codes = torch.round(heads / scale.float().clamp(min=SMALLEST)[:, None])
        codes = (codes.clamp_(-127, 127) + 127).to(torch.uint8)
        deltas = entries[:, others] - _read(codes, scale)[:, of]
        return spec.beside_x(x) | {"anchors": codes, "anchor_scale": scale, "x": deltas}

    def decode(self, y: Payload, spec: Spec) -> Payload:
        array = spec.arrays["x"]
        (heads, tokens, channels), step = array.shape, self.group
        read, deltas = _read(y["anchors"], y["anchor_scale"]), y["x"]
        x = torch.empty(array.shape, device=read.device)
        # Group by group, by views: picking tokens by their indices takes several times as long.
        x[:, ::step] = read
        whole = tokens // step
        inner = x[:, : whole * step].view(heads, whole, step, channels)[:, :, 1:]
        own = deltas[:, : whole * (step - 1)].view(heads, whole, step - 1, channels)
        torch.add(own, read[:, :whole, None], out=inner)
        if whole < read.shape[1]:
            x[:, whole * step + 1 :] = deltas[:, whole * (step - 1) :] + read[:, -1:]
        if array.dtype != x.dtype:
            x = saturated(x, array.dtype)
        return spec.beside_x(y) | {"x": x}

    def inputs_after(self, inputs: Payload, spec: Spec) -> Payload:
        _, others, _ = self._split(spec.arrays["x"].shape[1])
        return of_tokens(inputs, others)

    def tokens_after(self, tokens: range, spec: Spec) -> range | None:
        # Of the tokens before n, ⌈n / group⌉ are anchors.
        start, stop = (n - -(-n // self.group) for n in (tokens.start, tokens.stop))
        return range(start, stop)

    def error(self, x: Payload, spec: Spec, inner: float = 0.0) -> float:
        """Half of the largest anchor's step, or what the differences err by; and rounding."""
        tensor = x["x"].float()
        if not tensor.numel():
            return inner
        largest = tensor.abs().amax().item()
        step = largest / 127 * (0.5 + 127 * FLOAT16.eps) + 2.0**-16
        return max(step, inner) + 4 * largest * torch.finfo(spec.arrays["x"].dtype).eps

    def _split(self, tokens: int) -> tuple[Tensor, Tensor, Tensor]:
        """Which tokens are anchors, which are not, and the anchor of each of the latter, counted in anchors."""
        every = torch.arange(tokens)
        others = every[every % self.group != 0]
        return every[:: self.group], others, others // self.group


def _read(codes: Tensor, scale: Tensor) -> Tensor:
    return (codes.float() - 127) * scale.float()[:, None]
