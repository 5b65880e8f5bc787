"""Karhunen-Loève transform of all layers, in a basis where errors weigh as much as they change the model's loss."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from kvtool.codecs.calibration import Calibration, entry
from kvtool.codecs.float16 import saturated
from kvtool.codecs.klt.basis import Basis, Sizes, basis_of
from kvtool.codecs.klt.calibrate import example
from kvtool.codecs.klt.products import EPS, factors
from kvtool.codecs.spec import TOKEN_IDS, Array, Payload, Spec
from kvtool.codecs.stage import Kind, Stage
from kvtool.codecs.stage_registry import register

FAR = 4.0
"""Text is unlike the calibration's if the basis leaves out this many times as much of it, weighted and squared."""


@register
@dataclass(frozen=True)
class Klt(Stage):
    """``x`` [L, H, T, D] becomes ``x`` [T, R] float32: how each token differs from its prediction.

    Keys or values are predicted linearly from the token and the one before it. The rest is written in a Karhunen-Loève
    basis of the model's caches, under weights in which an error of one costs about as much anywhere. ``calibration`` is
    fitted by ``kvtool.codecs.klt.calibrate``. The first ``components`` of the basis are kept, 0 for all; with ``whole``
    also those of its complement, which pays at a fine step.
    """

    name: ClassVar[str] = "klt"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "transform"
    on_any_device: ClassVar[bool] = True
    needs: ClassVar[frozenset[str]] = frozenset({TOKEN_IDS})

    calibration: Calibration
    side: Literal["keys", "values"] = "keys"
    components: int = 0
    whole: bool = False

    def __post_init__(self) -> None:
        self.require(self.components in range(1 << 31), "components", self.components, "0 to 2**31 - 1")
        self.require(not (self.components and self.whole), "components", self.components, "0 where whole")

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        calibration = example()
        return cls(calibration), cls(calibration, "values", whole=True), cls(calibration, components=5)

    def plan(self, spec: Spec) -> Spec:
        layers, heads, tokens, channels = self.x_of(spec, "layers", "heads", "tokens", "channels").shape
        sizes = Sizes.of(self.calibration, entry(spec.place.first, self.side))
        expected = [sizes.layers, sizes.channels]
        held = [layers, heads * channels]
        self.require(held == expected, "layers, channels", held, str(expected))
        self.require(self.components <= sizes.rank, "components", self.components, f"at most {sizes.rank}")
        kept = sizes.components if self.whole else self.components or sizes.rank
        return spec.replace("x", {"x": Array((tokens, kept), torch.float32)}, self.name)

    def suited(self, x: Payload, spec: Spec) -> Stage:
        """All components, if the basis leaves out much more than it does of its calibration's text."""
        usual = self.calibration.facts.get("left_out")
        expected = usual.get(entry(spec.place.first, self.side)) if isinstance(usual, dict) else None
        if self.whole or not isinstance(expected, float) or not x["x"].numel():
            return self
        left_out = self._basis(spec).left_out(_rows(x), _ids(x))
        return replace(self, components=0, whole=True) if left_out > FAR * expected else self

    def encode(self, x: Payload, spec: Spec) -> Payload:
        coefficients = self._basis(spec).coefficients(_rows(x), _ids(x), whole=self.whole)
        if self.components:
            coefficients = coefficients[:, : self.components].contiguous()
        return spec.beside_x(x) | {"x": coefficients}

    def decode(self, y: Payload, spec: Spec) -> Payload:
        return self.decode_tokens(y, spec, None)

    def decode_tokens(self, y: Payload, spec: Spec, tokens: range | None) -> Payload:
        """Tokens that are not wanted are 0."""
        basis, ids, array, device = self._basis(spec), _ids(y), spec.arrays["x"], y["x"].device
        layers, heads, n_tokens, channels = array.shape
        wanted = slice(0, n_tokens) if tokens is None else slice(tokens.start, tokens.stop)
        # Many components are 0 in all of a segment. They are left out.
        coefficients = y["x"][wanted, : basis.sizes.rank]
        used = coefficients.abs().sum(0).nonzero().flatten()
        words, pairs = _pairs(ids[: wanted.stop], wanted.start)
        features = basis.own_features(words)
        # 16 bits would blur a fine step.
        products = (len(coefficients) * len(used) + features.numel()) * basis.sizes.width
        dtype = torch.float32 if self.whole else factors(products, device)
        coefficients = coefficients.to(dtype)[:, used]
        features, pairs = features.to(device, dtype), pairs.to(device)
        of_token, of_previous, of_components = basis.directions_on(device, dtype)
        of_components, means = of_components[used], basis.mean.view(layers, -1).to(device)
        rest = None
        if self.whole:
            rest = torch.empty(len(coefficients), basis.sizes.width, device=device)
            rest[:, basis.order.to(device)] = y["x"][wanted, basis.sizes.rank :]
            rest = rest.view(-1, layers, heads * channels)
        empty = torch.empty if tokens is None else torch.zeros
        out = empty(array.shape, dtype=array.dtype, device=device)
        predicted = torch.zeros(2 * len(words) + 1, heads * channels, device=device)
        for index in range(layers):
            predicted[: len(words)] = (features @ of_token[:, index]).float() + means[index]
            predicted[len(words) : -1] = features @ of_previous[:, index]
            rows = embedding_bag(pairs, predicted, mode="sum")
            rows += coefficients @ of_components[:, index]
            if rest is not None:
                rows += rest[:, index] @ basis.complement[index].to(device)
            # Rounded first: what is then moved is half as much.
            rounded = saturated(rows, array.dtype).view(-1, heads, channels)
            out[index, :, wanted] = rounded.transpose(0, 1)
        return spec.beside_x(y) | {"x": out}

    def tokens_after(self, tokens: range, spec: Spec) -> range | None:
        return tokens

    def error(self, x: Payload, spec: Spec, inner: float = 0.0) -> float:
        """The part of ``x`` that the basis leaves out, ``inner`` once for each component, and rounding."""
        tensor = x["x"]
        if not tensor.numel():
            return inner
        basis = self._basis(spec)
        encoded, own, _ = self.trial(x, spec)
        amplified = inner * basis.synthesis.abs().sum(0).amax().item()
        if self.whole:
            amplified += inner * basis.complement.abs().sum(1).amax().item()
        largest = tensor.abs().amax().item() + own + amplified + basis.mean.abs().amax().item()
        terms = basis.sizes.components + 2 * basis.sizes.features + 1
        longest = encoded["x"].norm(dim=-1).amax().item() * basis.synthesis.norm(dim=0).amax().item()
        eps = torch.finfo(torch.float32).eps
        rounding = terms * eps * (largest + longest) + largest * torch.finfo(tensor.dtype).eps
        if not self.whole:
            rounding += 2 * EPS * (largest + longest)
        return float(own + amplified + rounding)

    def _basis(self, spec: Spec) -> Basis:
        return basis_of(self.calibration, entry(spec.place.first, self.side))


def _rows(payload: Payload) -> Tensor:
    """[T, L · H · D] float32."""
    return payload["x"].float().permute(2, 0, 1, 3).flatten(1)


def _pairs(ids: Tensor, start: int) -> tuple[Tensor, Tensor]:
    """Distinct tokens [W], and [T, 2] for tokens from ``start`` on: which of them each is, and W + which the one before it is.

    2 · W stands for none. A text repeats tokens: what each predicts is computed once.
    """
    words, where = torch.unique(ids[max(start - 1, 0) :], return_inverse=True)
    if not start:
        where = torch.cat([where.new_full((1,), len(words)), where])
    return words, torch.stack([where[1:], where[:-1] + len(words)], 1)


def _ids(payload: Payload) -> Tensor:
    """Token ids [T]; every layer of the group has the same."""
    ids = payload[TOKEN_IDS]
    return ids[0] if ids.ndim == 2 else ids
