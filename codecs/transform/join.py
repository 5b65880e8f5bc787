"""Joins all heads' channels of a token, for stages that treat them as one vector."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kvtool.codecs.spec import Array, Payload, Spec
from kvtool.codecs.stage import Kind, Stage
from kvtool.codecs.stage_registry import register
from kvtool.codecs.transform.channels import join_heads


@register
@dataclass(frozen=True)
class Join(Stage):
    """``x`` [..., H, T, D] becomes [..., 1, T, H * D]: one head, with the channels of all, the first's first."""

    name: ClassVar[str] = "join"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "transform"

    def plan(self, spec: Spec) -> Spec:
        x = self.x_of(spec, "...", "heads", "tokens", "channels")
        *front, heads, tokens, channels = x.shape
        return spec.replace("x", {"x": Array((*front, 1, tokens, heads * channels), x.dtype)}, self.name)

    def encode(self, x: Payload, spec: Spec) -> Payload:
        return {**x, "x": x["x"].transpose(-3, -2).flatten(-2).unsqueeze(-3).contiguous()}

    def decode(self, y: Payload, spec: Spec) -> Payload:
        return {**y, "x": join_heads([y["x"].squeeze(-3)], spec.arrays["x"].shape)}
