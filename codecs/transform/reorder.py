"""Sorts channels by size, so that those coded together are alike."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kvtool.codecs.errors import CodecError
from kvtool.codecs.spec import Array, Payload, Spec
from kvtool.codecs.stage import Kind, Stage
from kvtool.codecs.stage_registry import register


@register
@dataclass(frozen=True)
class Reorder(Stage):
    """``x`` [..., H, T, D] becomes the same with its channels permuted, and beside it

    - ``order`` [..., H, D] uint8, int16 or int32, whatever holds ``heads * D``: entry i says where the i-th
      channel was.

    The largest come first, by the ``by`` of all tokens: the largest magnitude (``"max"``), the mean magnitude
    (``"mean"``), the largest entry less the smallest (``"range"``) or the mean (``"signed"``). The channels of
    ``heads`` neighbouring heads are permuted among each other, counted through from the first head's; the last
    heads may be fewer.
    """

    name: ClassVar[str] = "reorder"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "transform"

    by: Literal["max", "mean", "range", "signed"] = "max"
    heads: int = 1

    def __post_init__(self) -> None:
        fits = self.by in ("max", "mean", "range", "signed")
        self.require(fits, "by", self.by, "'max', 'mean', 'range' or 'signed'")
        self.require(self.heads in range(1, 1 << 16), "heads", self.heads, "1 to 65535")

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        return cls(), cls(by="mean"), cls(by="range", heads=2), cls(by="signed")

    def plan(self, spec: Spec) -> Spec:
        x = self.x_of(spec, "...", "heads", "tokens", "channels")
        *front, _, channels = x.shape
        together = min(self.heads, front[-1]) * channels
        self.require(together < 1 << 31, "channels together", together, "below 2**31")
        return spec.replace("x", {"x": x, "order": _order((*front, channels), together)}, self.name)

    def encode(self, x: Payload, spec: Spec) -> Payload:
        shape = spec.arrays["x"].shape
        moved, orders = [], []
        for rows in split_heads(x["x"], self.heads):
            order = self._sizes(rows).argsort(dim=-1, descending=True, stable=True)
            moved.append(rows.gather(-1, order.unsqueeze(-2).expand(rows.shape)))
            orders.append(order)
        order = torch.cat(orders, -1).view(*shape[:-2], shape[-1])
        dtype = self.plan(spec).arrays["order"].dtype
        return {**x, "x": join_heads(moved, shape), "order": order.to(dtype)}

    def decode(self, y: Payload, spec: Spec) -> Payload:
        shape = spec.arrays["x"].shape
        moved = []
        orders = split_heads(y["order"].long().unsqueeze(-2), self.heads)
        for rows, order in zip(split_heads(y["x"], self.heads), orders, strict=True):
            ascending, inverse = order.sort(dim=-1)
            if not (ascending == torch.arange(order.shape[-1], device=order.device)).all():
                raise CodecError(f"{self.label}: order is no permutation of the channels")
            moved.append(rows.gather(-1, inverse.expand(rows.shape)))
        return spec.beside_x(y) | {"x": join_heads(moved, shape)}

    def _sizes(self, rows: Tensor) -> Tensor:
        """How large each channel of ``rows`` [..., T, n] is: [..., n] float32."""
        if not rows.shape[-2]:
            return rows.new_zeros(*rows.shape[:-2], rows.shape[-1])
        entries = rows.float()
        if self.by == "range":
            return entries.amax(-2) - entries.amin(-2)
        if self.by == "signed":
            return entries.mean(-2)
        return entries.abs().amax(-2) if self.by == "max" else entries.abs().mean(-2)


def split_heads(x: Tensor, heads: int) -> tuple[Tensor, ...]:
    """``x`` [..., H, T, D] as rows [..., T, heads * D], for each ``heads`` neighbouring heads of it."""
    rows = x.transpose(-3, -2).flatten(-2)
    return torch.split(rows, max(heads * x.shape[-1], 1), -1)


def join_heads(rows: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    """Undo ``split_heads``: contiguous, of ``shape`` [..., H, T, D]."""
    *front, heads, tokens, channels = shape
    return torch.cat(rows, -1).view(*front, tokens, heads, channels).transpose(-3, -2).contiguous()


def _order(shape: tuple[int, ...], together: int) -> Array:
    if together <= 256:
        return Array(shape, torch.uint8, levels=max(together, 1))
    return Array(shape, torch.int16 if together <= 1 << 15 else torch.int32)
