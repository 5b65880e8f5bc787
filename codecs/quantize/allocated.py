"""Uniform quantization with bits for each component, as a calibration has allocated them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from kvtool.codecs.calibrate.bit_allocation import WHOLE, Run, runs_of
from kvtool.codecs.calibration import Calibration, entry
from kvtool.codecs.float16 import to_float16
from kvtool.codecs.quantize.group import Group
from kvtool.codecs.spec import Array, Payload, Spec
from kvtool.codecs.stage import Kind, Stage
from kvtool.codecs.stage_registry import register


@register
@dataclass(frozen=True)
class Allocated(Stage):
    """``x`` [H, T, C], the components that have bits at ``ratio`` (``kvtool.codecs.calibrate.bit_allocation``), becomes

    - ``codes1`` … ``codes8`` [H, T, n] uint8, those of that many bits, where there are any;
    - ``scale`` and ``zero`` [H, T, blocks] float16, of each block of components that has codes;
    - ``whole`` [H, T, n] float16, those of 16 bits.

    Each block of a token is quantized as by ``Group``, which reads an entry back as ``code * scale + zero``.
    Raises CodecError for entries beyond float16's range.
    """

    name: ClassVar[str] = "allocated"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "quantize"

    calibration: Calibration
    side: Literal["keys", "values"] = "keys"
    ratio: int = 16

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        blocks = {"8": [[2, 1, 16], [1, 2, 8], [2, 1, 3]], "16": [[2, 2, 4], [1, 2, 4]], "32": [[6, 1, 16]]}
        calibration = Calibration("kvtc", {"blocks": {"0002.keys": blocks, "0002.values": blocks}}, {})
        return cls(calibration), cls(calibration, "values", 8), cls(calibration, ratio=32)

    def plan(self, spec: Spec) -> Spec:
        x = self.x_of(spec, "heads", "tokens", "channels")
        runs = runs_of(self.calibration, entry(spec.place.first, self.side), self.ratio)
        kept = sum(run.channels for run in runs)
        self.require(kept == x.shape[2], "channels of x", x.shape[2], f"{kept}, those that have bits")
        front = x.shape[:2]
        blocks = sum(run.blocks for run in runs if run.bits != WHOLE)
        arrays = dict.fromkeys(("scale", "zero"), Array((*front, blocks), torch.float16))
        for bits in sorted({run.bits for run in runs}):
            shape = (*front, sum(run.channels for run in runs if run.bits == bits))
            whole = Array(shape, torch.float16)
            arrays[_name(bits)] = whole if bits == WHOLE else Array(shape, torch.uint8, levels=1 << bits)
        return spec.replace("x", arrays, self.name)

    def encode(self, x: Payload, spec: Spec) -> Payload:
        rest = spec.beside_x(x)
        new = {name: array for name, array in self.plan(spec).arrays.items() if name not in rest}
        out = {n: torch.empty(a.shape, dtype=a.dtype, device=x["x"].device) for n, a in new.items()}
        for run, part, codes, block in self._places(spec):
            values = x["x"][..., part]
            if run.bits == WHOLE:
                out["whole"][..., codes] = to_float16(self, "coefficient", values)
                continue
            coded = _group(run).encode({"x": values}, Spec.of(values))
            out[_name(run.bits)][..., codes] = coded["codes"]
            out["scale"][..., block] = coded["scale"]
            out["zero"][..., block] = coded["zero"]
        return rest | out

    def decode(self, y: Payload, spec: Spec) -> Payload:
        array = spec.arrays["x"]
        x = torch.empty(array.shape, dtype=array.dtype, device=y["scale"].device)
        for run, part, codes, block in self._places(spec):
            if run.bits == WHOLE:
                x[..., part] = y["whole"][..., codes]
                continue
            coded = {"codes": y[_name(run.bits)][..., codes]}
            coded |= {name: y[name][..., block] for name in ("scale", "zero")}
            coded = {name: tensor.contiguous() for name, tensor in coded.items()}
            values = Array((*array.shape[:2], run.channels), torch.float32)
            x[..., part] = _group(run).decode(coded, Spec({"x": values}))["x"]
        return spec.beside_x(y) | {"x": x}

    def tokens_after(self, tokens: range, spec: Spec) -> range | None:
        return tokens

    def error(self, x: Payload, spec: Spec, inner: float = 0.0) -> float:
        """Measured on ``x``, since each block has a step of its own."""
        return inner + self.trial(x, spec)[1] if x["x"].numel() else inner

    def _places(self, spec: Spec) -> Iterator[tuple[Run, slice, slice, slice]]:
        """Each run; the places of its components in x and in the codes of its width, and of its blocks in the scales."""
        used: dict[str, int] = {}

        def next_of(name: str, count: int) -> slice:
            start = used.get(name, 0)
            used[name] = start + count
            return slice(start, start + count)

        for run in runs_of(self.calibration, entry(spec.place.first, self.side), self.ratio):
            blocks = 0 if run.bits == WHOLE else run.blocks
            n = run.channels
            yield run, next_of("x", n), next_of(_name(run.bits), n), next_of("scale", blocks)


def _name(bits: int) -> str:
    return "whole" if bits == WHOLE else f"codes{bits}"


def _group(run: Run) -> Group:
    return Group(bits=run.bits, group=run.size, axis="channel")
