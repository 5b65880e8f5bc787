"""The caches of neighbouring layers in a basis that the model's caches share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from kvtool.codecs.calibrate.bit_allocation import rank_of, runs_of
from kvtool.codecs.calibration import Calibration, entry
from kvtool.codecs.float16 import saturated
from kvtool.codecs.spec import Array, Json, Payload, Spec
from kvtool.codecs.stage import Kind, Stage
from kvtool.codecs.stage_registry import register
from kvtool.kernels.threads import one_thread


@register
@dataclass(frozen=True)
class Pca(Stage):
    """``x`` [L, H, T, D] becomes ``x`` [1, T, r] float32: each token's coefficients, of all layers and heads at once.

    The basis is the calibration's, in order of variance, and its mean is taken off first; r components are kept,
    those that have bits at ``ratio`` (``kvtool.codecs.calibrate.bit_allocation``). For a group of layers from 0 on, say, the
    calibration has ``0000.keys.basis`` [R, L, H, D] float16 and ``0000.keys.mean`` [L, H, D] float32.
    """

    name: ClassVar[str] = "pca"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "transform"

    calibration: Calibration
    side: Literal["keys", "values"] = "keys"
    ratio: int = 16

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        generator = torch.Generator().manual_seed(3)
        tensors: dict[str, Tensor] = {}
        for side in ("keys", "values"):
            basis = torch.linalg.qr(torch.randn(24, 24, generator=generator)).Q[:9]
            tensors[f"0002.{side}.basis"] = basis.reshape(9, 2, 2, 6).half()
            tensors[f"0002.{side}.mean"] = torch.randn(2, 2, 6, generator=generator)
        blocks = {"8": [[3, 1, 16], [2, 3, 4]], "16": [[1, 4, 2]]}
        names = ("0002.keys", "0002.values")
        facts: dict[str, Json] = {"rank": dict.fromkeys(names, 9), "blocks": dict.fromkeys(names, blocks)}
        calibration = Calibration("kvtc", facts, tensors)
        return cls(calibration), cls(calibration, "values", 8)

    def plan(self, spec: Spec) -> Spec:
        tokens = self.x_of(spec, "layers", "heads", "tokens", "channels").shape[2]
        rank = self._held(spec)[0].shape[0]
        return spec.replace("x", {"x": Array((1, tokens, rank), torch.float32)}, self.name)

    def encode(self, x: Payload, spec: Spec) -> Payload:
        basis, mean = self._held(spec)
        tensor = x["x"]
        coefficients = torch.zeros(tensor.shape[2], basis.shape[0], device=tensor.device)
        with one_thread():
            for layer, own, middle in zip(tensor, basis.unbind(1), mean, strict=True):
                centred = layer.float() - middle[:, None]
                coefficients += centred.transpose(0, 1).flatten(1) @ own.flatten(1).float().mT
        return {**x, "x": coefficients[None]}

    def decode(self, y: Payload, spec: Spec) -> Payload:
        basis, mean = self._held(spec)
        array = spec.arrays["x"]
        x = torch.empty(array.shape, dtype=array.dtype, device=y["x"].device)
        # A layer at a time, since all of them in float32 would take several times the cache's bytes.
        for layer, own, middle in zip(x, basis.unbind(1), mean, strict=True):
            flat = torch.addmm(middle.flatten(), y["x"][0], own.flatten(1).float())
            by_head = flat.view(len(flat), *middle.shape).transpose(0, 1)
            layer.copy_(saturated(by_head, array.dtype))
        return {**y, "x": x}

    def error(self, x: Payload, spec: Spec, inner: float = 0.0) -> float:
        """The error on ``x``, ``inner`` once for each component, an ulp, and a sum's rounding."""
        tensor = x["x"]
        if not tensor.numel():
            return inner
        basis, _ = self._held(spec)
        encoded, own, decoded = self.trial(x, spec)
        amplified: float = inner * basis.double().abs().sum(0).amax().item()
        largest = decoded + amplified
        rank = basis.shape[0]
        length: float = encoded["x"].double().norm(dim=-1).amax().item() + inner * rank**0.5
        rounding = (rank + 1) * torch.finfo(torch.float32).eps * (length + largest)
        dtype = torch.finfo(tensor.dtype)
        return own + amplified + rounding + largest * dtype.eps + dtype.smallest_normal * dtype.eps

    def _held(self, spec: Spec) -> tuple[Tensor, Tensor]:
        """The basis [r, L, H, D] and the mean [L, H, D] of the layers at the spec's place."""
        layers, heads, _, channels = spec.arrays["x"].shape
        name, sizes = entry(spec.place.first, self.side), (layers, heads, channels)
        rank = rank_of(self.calibration, name)
        kept = sum(run.channels for run in runs_of(self.calibration, name, self.ratio))
        self.require(kept <= rank, "number of components with bits", kept, f"at most {rank}, those there are")
        basis = self.calibration.tensor(f"{name}.basis", Array((rank, *sizes), torch.float16))
        return basis[:kept], self.calibration.tensor(f"{name}.mean", Array(sizes, torch.float32))
