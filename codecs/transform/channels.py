"""Channels in another order, or fewer of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kvtool.codecs.errors import CodecError
from kvtool.codecs.float16 import to_window, window_dtype
from kvtool.codecs.kv import LayerKV
from kvtool.codecs.prune.budgets.budget import ranks
from kvtool.codecs.prune.scores.channels import think
from kvtool.codecs.prune.scores.inputs import WINDOW_QUERIES
from kvtool.codecs.spec import Array, Payload, Spec
from kvtool.codecs.stage import Kind, Stage
from kvtool.codecs.stage_registry import register


@register
@dataclass(frozen=True)
class Reorder(Stage):
    """Sorts channels by size, so that those coded together are alike.

    ``x`` [..., H, T, D] becomes the same with its channels permuted, and beside it

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


@register
@dataclass(frozen=True)
class KeepChannels(Stage):
    """``x`` [H, T, D], keys, becomes [H, T, D - n] without the n = ⌊drop · D⌋ channels of each head that matter least to
    attention (ThinK: ``prune.scores.channels.think``). Stored beside it are

    - ``channels`` [H, D - n], the kept channels, ascending: uint8 or int32, whichever holds D;
    - ``dropped`` [H, min(recent, T), n], what the last tokens have in the others, in x's own dtype where that has 16 bits, else
      float16; missing if ``recent`` is 0.

    Decoded, the other tokens have zeros there. Raises CodecError where heads hold different tokens, which have no channels
    of their own, and for entries of ``dropped`` beyond float16's range.
    """

    drop: float = 0.4
    recent: int = 32

    name: ClassVar[str] = "keep-channels"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "transform"
    needs: ClassVar[frozenset[str]] = frozenset({WINDOW_QUERIES})

    def __post_init__(self) -> None:
        fits = isinstance(self.drop, float) and 0 <= self.drop < 1
        self.require(fits, "drop", self.drop, "a number from 0, and below 1")
        self.require(self.recent in range(1 << 31), "recent", self.recent, "0 to 2**31 - 1")

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        return cls(), cls(drop=0.7, recent=0), cls(drop=0.0, recent=3)

    def plan(self, spec: Spec) -> Spec:
        x = self.x_of(spec, "heads", "tokens", "channels")
        packed = "False, heads that hold the same tokens, as heads=tokens gives"
        self.require(not spec.place.packed, "packed", spec.place.packed, packed)
        heads, tokens, channels = x.shape
        dropped = self._dropped(channels)
        dtype = torch.uint8 if channels <= 256 else torch.int32
        levels = max(channels, 1) if channels <= 256 else None
        arrays = {
            "x": Array((heads, tokens, channels - dropped), x.dtype),
            "channels": Array((heads, channels - dropped), dtype, levels=levels),
        }
        if self.recent:
            arrays["dropped"] = Array((heads, min(self.recent, tokens), dropped), window_dtype(x.dtype))
        return spec.replace("x", arrays, self.name)

    def encode(self, x: Payload, spec: Spec) -> Payload:
        keys, kept = x["x"], self._kept(x)
        tokens, dropped = keys.shape[1], self._dropped(keys.shape[2])
        channels = _places(kept, keys.shape[2] - dropped)
        encoded = {name: tensor for name, tensor in x.items() if name not in self.needs}
        encoded |= {
            "x": keys.gather(2, channels[:, None].expand(-1, tokens, -1)),
            "channels": channels.to(self.plan(spec).arrays["channels"].dtype),
        }
        if self.recent:
            others = _places(~kept, dropped)[:, None].expand(-1, tokens, -1)
            last = keys.gather(2, others)[:, tokens - min(self.recent, tokens) :]
            encoded["dropped"] = to_window(self, "dropped entry", last)
        return encoded

    def decode(self, y: Payload, spec: Spec) -> Payload:
        array = spec.arrays["x"]
        heads, tokens, channels = array.shape
        index = y["channels"].long()
        if index.numel() and (
            int(index.min()) < 0 or int(index.max()) >= channels or (index.diff() <= 0).any()
        ):
            raise CodecError(
                f"{self.label}: channels are not {index.shape[1]} ascending ones of {channels} in each head"
            )
        kept = torch.zeros(heads, channels, dtype=torch.bool).scatter_(1, index, value=True)
        x = torch.zeros(array.shape, dtype=array.dtype)
        x.scatter_(2, index[:, None].expand(-1, tokens, -1), y["x"])
        if self.recent:
            last = x[:, tokens - y["dropped"].shape[1] :]
            others = _places(~kept, self._dropped(channels))[:, None].expand(-1, last.shape[1], -1)
            last.scatter_(2, others, y["dropped"].to(array.dtype))
        return spec.beside_x(y) | {"x": x}

    def error(self, x: Payload, spec: Spec, inner: float = 0.0) -> float:
        lost = x["x"].float().abs() * ~self._kept(x)[:, None]
        return max(inner, float(lost.max()) if lost.numel() else 0.0)

    def _dropped(self, channels: int) -> int:
        return int(channels * self.drop)

    def _kept(self, x: Payload) -> Tensor:
        """[H, D] bool: the channels that stay."""
        keys = x["x"]
        heads, tokens, channels = keys.shape
        # Without heads there are no queries to score by.
        layer = LayerKV(keys, keys, torch.arange(tokens))
        scores = think(layer, x) if heads else torch.zeros(0, channels)
        return ranks(scores, torch.zeros_like(scores, dtype=torch.bool)) < channels - self._dropped(channels)


def _places(mask: Tensor, count: int) -> Tensor:
    """Where each row of ``mask`` [H, n] is true, ``count`` times in each: [H, count] int64, ascending."""
    return mask.nonzero()[:, 1].view(len(mask), count)


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
