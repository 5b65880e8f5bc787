"""What the coders of transform coefficients share: the payload, and what their calibration says of each component."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kvtool.codecs.calibration import Calibration, entry
from kvtool.codecs.entropy_models import context as model
from kvtool.codecs.errors import CodecError
from kvtool.codecs.spec import Array, Spec
from kvtool.codecs.stage import Kind, Stage
from kvtool.kernels.reference.context_model import EXPONENTS

BYTES_OF_CODE = 7
"""At most: 16 bits for a symbol, 19 for what escapes, 15 low bits."""
CODES_IN_BYTE = 1 << 14
"""At most: the largest share that a symbol can have leaves 2**-11 of it."""


@dataclass(frozen=True)
class Coefficients(Stage):
    """``codes`` [T, R] int16 and ``exponents`` [T] uint8, among others, become ``x`` [n] uint8.

    Token t was quantized with ``step * 2**((exponents[t] - 32) / 2)``, the exponent up to 64. Components come by falling
    variance.

    For the keys of layers from 0 on, say, the calibration has ``0000.keys.scales`` [R] uint8, log2 of each
    component's mean absolute value as ``8 * log2 + 200``. It may have ``0000.keys.autoregression`` [R, 2] int8, and
    ``tables`` [40, 7, 33] uint8, of both sides and all layers: ``kvtool.codecs.entropy_models.context`` fits them.
    """

    kind: ClassVar[Kind] = "entropy"

    calibration: Calibration
    side: Literal["keys", "values"] = "keys"
    step: float = 0.05

    def __post_init__(self) -> None:
        self.require(0 < self.step < math.inf, "step", self.step, "a positive number")

    def _sizes(self, spec: Spec) -> tuple[int, int]:
        """Tokens and components."""
        for name, dtype, axes in (("codes", torch.int16, 2), ("exponents", torch.uint8, 1)):
            self.require(name in spec.arrays, "payload", sorted(spec.arrays), f"one with {name}")
            array = spec.arrays[name]
            fits = array.dtype == dtype and len(array.shape) == axes
            self.require(fits, name, (list(array.shape), array.dtype), f"{axes} axes of {dtype}")
        tokens, components = spec.arrays["codes"].shape
        length = spec.arrays["exponents"].shape[0]
        self.require(length == tokens, "length of exponents", length, f"{tokens}, one for each token")
        return tokens, components

    def _held(self, spec: Spec) -> tuple[Tensor, Tensor, Tensor]:
        """Scales in steps [R] int32, weights of autoregression [R, 2] int8, and the tables."""
        components = self._sizes(spec)[1]
        name, calibration = entry(spec.place.first, self.side), self.calibration
        scales = self._first(f"{name}.scales", (components,), torch.uint8)
        weights, roots = torch.zeros(components, 2, dtype=torch.int8), None
        if f"{name}.autoregression" in calibration.tensors:
            weights = self._first(f"{name}.autoregression", (components, 2), torch.int8)
        if "tables" in calibration.tensors:
            roots = calibration.tensor("tables", Array(model.SHAPE, torch.uint8))
        return model.in_steps(scales, self.step), weights, model.cumulative(roots)

    def _first(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """The first rows of a calibration's tensor: the last components may not be coded."""
        tensor = self.calibration.tensors.get(name)
        rows = max(shape[0], len(tensor)) if tensor is not None and tensor.ndim else shape[0]
        return self.calibration.tensor(name, Array((rows, *shape[1:]), dtype))[: shape[0]]

    def _rest(self, spec: Spec) -> Spec:
        return spec.with_arrays({name: array for name, array in spec.arrays.items() if name != "codes"})

    def _checked(self, exponents: Tensor) -> Tensor:
        if len(exponents) and (largest := int(exponents.max())) > EXPONENTS:
            raise CodecError(f"{self.label}: x: exponent {largest}, expected at most {EXPONENTS}")
        return exponents


def examples() -> tuple[Calibration, Calibration]:
    """Of six components of layers 2 and 3: one without weights and tables, for keys, and one with them, for values."""
    scales = torch.tensor([230, 222, 214, 207, 199, 192], dtype=torch.uint8)
    weights = torch.tensor([[90, 30], [60, -20], [30, 0], [0, 64], [0, 0], [-40, 0]], dtype=torch.int8)
    generator = torch.Generator().manual_seed(4)
    tables = torch.randint(0, 256, model.SHAPE, dtype=torch.uint8, generator=generator)
    named = {"0002.values.scales": scales, "0002.values.autoregression": weights, "tables": tables}
    return Calibration("klt", {}, {"0002.keys.scales": scales}), Calibration("klt", {}, named)
