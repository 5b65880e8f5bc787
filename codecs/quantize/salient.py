"""Tokens that are attended to in more bits than the others."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kvtool.codecs.errors import CodecError
from kvtool.codecs.quantize.group import Group
from kvtool.codecs.spec import Array, Payload, Spec
from kvtool.codecs.stage import Kind, Stage
from kvtool.codecs.stage_registry import register


@register
@dataclass(frozen=True)
class Salient(Stage):
    """The ``⌈ratio * T⌉`` tokens of ``x`` [H, T, D] most attended to in ``high`` bits, the rest in ``low``.

    Attention is summed over heads, and over layers where these are merged, so that all share the split. Of equals
    the first is taken. Stored are

    - ``salient`` [T] uint8, 1 for those tokens;
    - ``codes_high``, ``scale_high``, ``zero_high``, and the same with ``_low``: what ``Group`` makes of each.

    ``axis`` says what shares a scale: ``"token"``, ``group`` tokens of a channel; ``"channel"``, ``group``
    channels of a token; ``"heads"``, the same where the channels of all heads stand in a row, so that each
    part is [1, tokens, H * D]. A ``group`` of 0 is all of them.
    """

    name: ClassVar[str] = "salient"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "quantize"
    needs: ClassVar[frozenset[str]] = frozenset({"attention"})
    by_head: ClassVar[bool] = False

    ratio: float = 0.6
    high: int = 4
    low: int = 2
    group: int = 0
    axis: Literal["token", "channel", "heads"] = "channel"

    def __post_init__(self) -> None:
        self.require(0 <= self.ratio <= 1, "ratio", self.ratio, "0 to 1")
        self.require(self.low in range(1, 9), "low", self.low, "1 to 8")
        self.require(self.high in range(self.low, 9), "high", self.high, f"{self.low} (low) to 8")
        self.require(self.group in range(1 << 31), "group", self.group, "0 to 2**31 - 1")
        self.require(self.axis in ("token", "channel", "heads"), "axis", self.axis, "token, channel or heads")

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        return (
            cls(),
            cls(ratio=0.25, high=8, low=3, group=4, axis="token"),
            cls(axis="token"),
            cls(ratio=0.5, group=7, axis="heads"),
            cls(ratio=0.0, axis="heads"),
            cls(ratio=1.0, high=5, low=1, group=5),
        )

    def plan(self, spec: Spec) -> Spec:
        x = self.x_of(spec, "heads", "tokens", "channels")
        shape = x.shape[:2] if self.by_head else x.shape[1:2]
        arrays = {"salient": Array(shape, torch.uint8, levels=2)}
        for part, group, folded in self._parts(x):
            planned = group.plan(folded).arrays
            arrays |= {f"{name}_{part}": array for name, array in planned.items()}
        return spec.replace("x", arrays, self.name)

    def encode(self, x: Payload, spec: Spec) -> Payload:
        salient = self._salient(x, spec)
        out = spec.beside_x(x) | {"salient": salient}
        tokens = self._split(x["x"], salient)
        for (part, group, folded), own in zip(self._parts(spec.arrays["x"]), tokens, strict=True):
            out |= {f"{name}_{part}": tensor for name, tensor in group.encode({"x": own}, folded).items()}
        return out

    def decode(self, y: Payload, spec: Spec) -> Payload:
        array, salient = spec.arrays["x"], y["salient"]
        heads, _, channels = array.shape
        x = torch.empty(array.shape, dtype=array.dtype, device=salient.device)
        for chosen, (part, group, folded) in zip((1, 0), self._parts(array), strict=True):
            mask, tokens = salient == chosen, folded.arrays["x"].shape[1]
            for count in mask.sum(-1).flatten().tolist():
                if count != tokens:
                    raise CodecError(
                        f"{self.label}: salient is {chosen} for {count} tokens, expected {tokens}"
                    )
            coded = {name: y[f"{name}_{part}"] for name in ("codes", "scale", "zero")}
            own = group.decode(coded, folded)["x"]
            if self.axis == "heads":
                own = own.view(tokens, heads, channels).transpose(0, 1)
            x[mask.expand(array.shape[:2])] = own.flatten(end_dim=1)
        return spec.beside_x(y) | {"x": x}

    def error(self, x: Payload, spec: Spec, inner: float = 0.0) -> float:
        """The larger of both parts' errors, as ``Group`` states them."""
        tokens = self._split(x["x"], self._salient(x, spec))
        parts = zip(self._parts(spec.arrays["x"]), tokens, strict=True)
        return max(group.error({"x": own}, folded, inner) for (_, group, folded), own in parts)

    def _parts(self, x: Array) -> Iterator[tuple[str, Group, Spec]]:
        """Name, quantizer and spec of the salient tokens, then of the others."""
        heads, tokens, channels = x.shape
        salient = self._many(tokens)
        for part, bits, own in (("high", self.high, salient), ("low", self.low, tokens - salient)):
            shape = (1, own, heads * channels) if self.axis == "heads" else (heads, own, channels)
            whole = max(shape[1] if self.axis == "token" else shape[2], 1)
            axis: Literal["token", "channel"] = "token" if self.axis == "token" else "channel"
            yield part, Group(bits, self.group or whole, axis), Spec({"x": Array(shape, x.dtype)})

    def _many(self, tokens: int) -> int:
        """The number of salient ones among ``tokens``."""
        return min(math.ceil(self.ratio * tokens), tokens)

    def _split(self, x: Tensor, salient: Tensor) -> Iterator[Tensor]:
        heads, tokens, channels = x.shape
        many = self._many(tokens)
        for chosen, count in ((1, many), (0, tokens - many)):
            own = x[(salient == chosen).expand(heads, tokens)].view(heads, count, channels)
            yield own.transpose(0, 1).flatten(1)[None] if self.axis == "heads" else own

    def _salient(self, x: Payload, spec: Spec) -> Tensor:
        score, tokens = x["attention"].float(), x["x"].shape[1]
        fits = score.ndim >= 2 and score.shape[-1] == tokens
        self.require(fits, "shape of attention", list(score.shape), f"[..., heads, {tokens}]")
        score = self._shared(score, len(x["x"]))
        order = score.argsort(dim=-1, descending=True, stable=True)
        salient = torch.zeros(score.shape, dtype=torch.uint8, device=score.device)
        return salient.scatter_(-1, order[..., : self._many(tokens)], 1)

    def _shared(self, score: Tensor, heads: int) -> Tensor:
        """``score`` [..., H, T] as that of all heads, [T]."""
        return score.flatten(end_dim=-2).sum(0)


@register
@dataclass(frozen=True)
class SalientByHead(Salient):
    """As ``Salient``, but each head has a split of its own: ``salient`` is [H, T].

    With ``axis="heads"``, a row has the first token of each head's part, the next row the second, and so on. Where a stage
    before it has changed the heads, they share the split.
    """

    name: ClassVar[str] = "salient-by-head"
    version: ClassVar[int] = 1
    by_head: ClassVar[bool] = True

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        return cls(axis="token"), cls(ratio=0.5, axis="heads")

    def _shared(self, score: Tensor, heads: int) -> Tensor:
        # Merged layers, if any, are in front of the heads.
        own = score.flatten(end_dim=-3).sum(0) if score.ndim > 2 else score
        return own if len(own) == heads else super()._shared(score, heads).expand(heads, -1)
