"""Group quantization of a part of each group's range; what lies beyond it is clipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvtool.codecs.quantize.group import Group, extremes, spread
from kvtool.codecs.spec import Payload, Spec
from kvtool.codecs.stage import Stage
from kvtool.codecs.stage_registry import register


@register
@dataclass(frozen=True)
class ClippedGroup(Group):
    """``x`` [H, T, D] becomes what ``Group`` makes of it, once each entry is clipped to ``clip`` times its group's
    smallest and largest entry.

    The steps between codes are smaller by that factor. So most entries err less, and the few at the ends err more.
    Raises CodecError for entries beyond float16's range.
    """

    name: ClassVar[str] = "clipped-group"
    version: ClassVar[int] = 1

    clip: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(0 < self.clip <= 1, "clip", self.clip, "a number above 0 and up to 1")

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        return cls(group=4), cls(bits=3, group=7, axis="channel", clip=0.5)

    def encode(self, x: Payload, spec: Spec) -> Payload:
        return super().encode({**x, "x": self._clipped(x["x"])}, spec)

    def error(self, x: Payload, spec: Spec, inner: float = 0.0) -> float:
        """That of the quantizer on what is clipped, the most that clipping takes from an entry, and x's own dtype."""
        tensor = x["x"]
        if not tensor.numel():
            return inner
        clipped = self._clipped(tensor)
        cut = (tensor.double() - clipped.double()).abs().amax().item()
        rounding = tensor.abs().amax().item() * torch.finfo(tensor.dtype).eps
        return super().error({**x, "x": clipped}, spec, inner) + cut + rounding

    def _clipped(self, x: Tensor) -> Tensor:
        entries = x.float()
        length = entries.shape[self.dim]
        low, high = (
            spread(end * self.clip, self.dim, self.group, length)
            for end in extremes(entries, self.dim, self.group)
        )
        return entries.clamp(low, high)
