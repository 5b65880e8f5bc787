"""A recipe that is calibrated, as a plugin: keys and values without the means that the model's channels have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kvtool.codecs import Array, Calibration, Parameter, Payload, Pipeline, Recipe, Sample, Spec, Stage
from kvtool.codecs.entropy.pack import Pack
from kvtool.codecs.float16 import saturated
from kvtool.codecs.quantize.group import Group
from kvtool.codecs.stage import Kind


@dataclass(frozen=True)
class Centred(Stage):
    """``x`` [H, T, D] becomes float32 of the same shape, less the calibration's mean [H, D] of this layer and side."""

    name: ClassVar[str] = "centred"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "transform"

    calibration: Calibration
    side: Literal["keys", "values"] = "keys"

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        means = {
            _name(layer, side): torch.full((2, 6), 0.25) for layer in (2, 3) for side in ("keys", "values")
        }
        calibration = Calibration("mean", {}, means)
        return cls(calibration), cls(calibration, "values")

    def plan(self, spec: Spec) -> Spec:
        x = self.x_of(spec, "heads", "tokens", "channels")
        self._mean(spec)
        return spec.replace("x", {"x": Array(x.shape, torch.float32)}, self.name)

    def encode(self, x: Payload, spec: Spec) -> Payload:
        return {**x, "x": x["x"].float() - self._mean(spec)}

    def decode(self, y: Payload, spec: Spec) -> Payload:
        return {**y, "x": saturated(y["x"] + self._mean(spec), spec.arrays["x"].dtype)}

    def error(self, x: Payload, spec: Spec, inner: float = 0.0) -> float:
        largest = max(x["x"].abs().amax().item(), 1.0) + inner if x["x"].numel() else 0.0
        return inner + 2 * largest * torch.finfo(x["x"].dtype).eps

    def _mean(self, spec: Spec) -> Tensor:
        heads, _, channels = spec.arrays["x"].shape
        array = Array((heads, channels), torch.float32)
        return self.calibration.tensor(_name(spec.place.first, self.side), array)[:, None]


def _name(layer: int, side: str) -> str:
    return f"{layer:04d}.{side}"


def centred(calibration: Calibration, bits: int) -> Pipeline:
    """No paper's."""
    keys, values = (
        (Centred(calibration, side), Group(bits=bits, axis="channel"), Pack()) for side in ("keys", "values")
    )
    return Pipeline(keys, values)


def fit(samples: Sequence[Sample]) -> Calibration:
    """The mean of each channel."""
    means: dict[str, Tensor] = {}
    for index in range(len(samples[0].kv.layers)):
        for side in ("keys", "values"):
            tensors = [getattr(sample.kv.layers[index], side) for sample in samples]
            means[_name(index, side)] = torch.cat(tensors, 1).float().mean(1)
    return Calibration("mean", {"tokens": sum(sample.kv.n_tokens for sample in samples)}, means)


RECIPES = [
    Recipe(
        name="centred",
        summary="means taken off",
        make=centred,
        parameters={"bits": Parameter(4, range(1, 9), "bits for each value")},
        calibration="mean",
        fit=fit,
    )
]
