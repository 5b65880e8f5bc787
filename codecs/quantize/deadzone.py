"""One step for all components, larger for tokens that matter less, and a dead zone around zero."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from kvtool.codecs.spec import ATTENTION, Array, Payload, Spec
from kvtool.codecs.stage import Kind, Stage
from kvtool.codecs.stage_registry import register
from kvtool.kernels.threads import one_thread_each

MIDDLE = 32
"""The exponent of a token whose step is the stage's own."""

COARSEST = 64
"""The largest exponent."""

LARGEST = 32767

BLOCK = 128
"""Tokens that one thread quantizes."""

QUIETEST = 0.05
"""The least magnitude, in steps, that is expected of a coefficient."""


@register
@dataclass(frozen=True)
class Deadzone(Stage):
    """Coefficients ``x`` [..., T, R] become ``codes`` [..., T, R] int16 and ``exponents`` [T] uint8.

    Token t has the step ``step * 2 ** ((exponents[t] - 32) / 2)``; an entry's code is its number of steps, rounded
    down from ``rounding`` below the next, so that zero has a wider zone than the others. With ``rate`` that zone follows
    from the magnitude expected of the entry: it goes one step further where that lowers the squared error by more than
    the bits it takes are worth, ``rate`` times what they are worth at high rates (Sullivan, 1996). Expected is a
    Laplace distribution, as wide as the component's mean times the token's. With ``power`` a token's step goes
    with the ``attention`` a that is paid to it, the mean over layers and heads, as ``a ** -power``, relative to the
    tokens' geometric mean, at most ``octaves`` either way. With 0 all tokens are alike, and nothing is needed, but that one
    whose largest entry is no 16 bits' number of steps has larger ones.
    """

    name: ClassVar[str] = "deadzone"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "quantize"
    on_any_device: ClassVar[bool] = True

    step: float = 0.04
    rounding: float = 0.4
    power: float = 0.0
    octaves: int = 3
    rate: float = 0.0

    def __post_init__(self) -> None:
        self.require(1e-6 <= self.step <= 1e6, "step", self.step, "1e-6 to 1e6")
        self.require(0 <= self.rounding <= 0.5, "rounding", self.rounding, "0 to 0.5")
        self.require(0 <= self.power <= 1, "power", self.power, "0 to 1")
        self.require(self.octaves in range(13), "octaves", self.octaves, "0 to 12")
        self.require(0 <= self.rate <= 4, "rate", self.rate, "0 to 4")

    @property
    def needs(self) -> frozenset[str]:  # type: ignore[override]
        return frozenset({ATTENTION}) if self.power else frozenset()

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        return cls(), cls(step=0.5, rounding=0.5), cls(power=0.25, octaves=2), cls(rate=0.6)

    def plan(self, spec: Spec) -> Spec:
        x = self.x_of(spec, "...", "tokens", "components")
        parts = {"codes": Array(x.shape, torch.int16), "exponents": Array((x.shape[-2],), torch.uint8)}
        return spec.replace("x", parts, self.name)

    def encode(self, x: Payload, spec: Spec) -> Payload:
        tensor, exponents = x["x"].float(), self._exponents(x, spec)
        steps = self._steps(exponents)
        parts = [slice(first, first + BLOCK) for first in range(0, max(len(steps), 1), BLOCK)]

        def magnitudes(part: slice) -> Tensor:
            return (tensor[..., part, :] / steps[part]).abs_()

        component = None
        if self.rate and tensor.numel():
            sums = one_thread_each(lambda part: magnitudes(part).sum(-2, keepdim=True), parts)
            component = (torch.stack(sums).sum(0) / len(steps)).clamp(min=QUIETEST)

        def codes(part: slice) -> Tensor:
            found = magnitudes(part)
            found.add_(self._rounding(found, component)).floor_().clamp_(min=0)
            if found.numel() and (largest := found.max().item()) > LARGEST:
                self.require(False, "a coefficient in steps", largest, f"at most {LARGEST}")
            return found.copysign_(tensor[..., part, :]).to(torch.int16)

        return spec.beside_x(x) | {
            "codes": torch.cat(one_thread_each(codes, parts), -2),
            "exponents": exponents,
        }

    def decode(self, y: Payload, spec: Spec) -> Payload:
        x = y["codes"].float() * self._steps(y["exponents"])
        return spec.beside_x(y) | {"x": x.to(spec.arrays["x"].dtype)}

    def tokens_after(self, tokens: range, spec: Spec) -> range | None:
        return tokens

    def error(self, x: Payload, spec: Spec, inner: float = 0.0) -> float:
        tensor = x["x"]
        if not tensor.numel():
            return inner
        widest = 1.5 if self.rate else 1 - self.rounding
        largest = self._steps(self._exponents(x, spec)).amax().item() * widest
        return inner + largest + 4 * tensor.abs().amax().item() * torch.finfo(tensor.dtype).eps

    def _rounding(self, magnitudes: Tensor, component: Tensor | None) -> Tensor | float:
        """The offset that is added before rounding down, for magnitudes in steps [..., T, R], and each component's mean."""
        if component is None:
            return self.rounding
        token = (magnitudes / component).clamp_(max=8).mean(-1, keepdim=True)
        expected = (component * token).clamp_(min=QUIETEST)
        # One step more takes 1 / (ln 2 * expected) bits, each worth ln 2 / 6 of a step's square.
        return expected.reciprocal_().mul_(-self.rate / 12).add_(0.5).clamp_(min=-0.5)

    def _exponents(self, x: Payload, spec: Spec) -> Tensor:
        tokens = spec.arrays["x"].shape[-2]
        tensor = x["x"]
        if not tensor.numel():
            return torch.full((tokens,), MIDDLE, dtype=torch.uint8)
        moved = torch.zeros(tokens)
        if self.power:
            octaves = _octaves(x[ATTENTION], tokens)
            moved = (-2 * self.power * octaves).round().clamp(-2 * self.octaves, 2 * self.octaves)
        # Larger steps where the token's largest entry would not fit in 16 bits.
        low, high = torch.aminmax(tensor, dim=-1)
        largest = torch.maximum(-low, high).float().reshape(-1, tokens).amax(0)
        needed = (2 * (largest / (self.step * (LARGEST - 1))).log2()).floor() + 1
        return (torch.maximum(moved, needed).clamp(max=COARSEST - MIDDLE) + MIDDLE).to(torch.uint8)

    def _steps(self, exponents: Tensor) -> Tensor:
        """[T, 1] float32."""
        factors = [self.step * math.exp2((e - MIDDLE) / 2) for e in range(256)]
        return torch.tensor(factors).to(exponents.device)[exponents.long()][:, None]


def _octaves(weights: Tensor, tokens: int) -> Tensor:
    """log2 of each token's weight [T], the mean over layers and heads where there are several, less their mean."""
    octaves = weights.float().reshape(-1, tokens).mean(0).clamp(min=1e-12).log2()
    return octaves - octaves.mean()
