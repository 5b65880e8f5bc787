"""Non-uniform quantization whose k-means counts an entry by what its error costs."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kvtool.codecs.calibration import Calibration, entry
from kvtool.codecs.quantize.codebook import Codebook
from kvtool.codecs.spec import Array, Spec
from kvtool.codecs.stage import Stage
from kvtool.codecs.stage_registry import register


@register
@dataclass(frozen=True)
class WeightedCodebook(Codebook):
    """``Codebook`` whose levels come of weighted k-means; what is stored, and how it is read back, is the same.

    An error of a mapped entry is as large in the end as the half range of its vector makes it, and a channel's Fisher
    information, the mean square of the loss's gradient, says what that costs. So an entry's weight is its channel's
    Fisher information times the square of that half range. Where all weights are zero, all entries count alike.

    ``calibration`` has the Fisher information of each layer's ``side``, [H · D] float32 (``codecs.calibrate.kvquant``).
    """

    name: ClassVar[str] = "weighted-codebook"
    version: ClassVar[int] = 1

    calibration: Calibration = field(kw_only=True)
    side: Literal["keys", "values"] = field(default="keys", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        self.require(self.side in ("keys", "values"), "side", self.side, "'keys' or 'values'")

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        fisher = torch.tensor([1.0, 0.0, 3.0, 0.5, 2.0, 0.1, 0.2, 4.0, 1.0, 0.0, 0.3, 1.5])
        names = [entry(layer, side) for layer in (2, 3) for side in ("keys", "values")]
        calibration = Calibration("kvquant", {}, dict.fromkeys(names, fisher))
        return (
            cls(calibration=calibration),
            cls(bits=2, axis="channel", match=True, calibration=calibration, side="values"),
        )

    def plan(self, spec: Spec) -> Spec:
        planned = super().plan(spec)
        self._fisher(spec)
        return planned

    def _weights(self, scale: Tensor, spec: Spec) -> Tensor:
        return self._fisher(spec).to(scale.device) * scale.float().square()

    def _fisher(self, spec: Spec) -> Tensor:
        """[(L,) H, 1, D], as the heads and channels of ``x``."""
        *front, heads, _, channels = spec.arrays["x"].shape
        array = Array((heads * channels,), torch.float32)
        first = spec.place.first
        layers = [
            self.calibration.tensor(entry(layer, self.side), array)
            for layer in range(first, first + (front[0] if front else 1))
        ]
        return torch.stack(layers).view(*front, heads, 1, channels)
