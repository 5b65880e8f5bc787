"""The first and the last tokens apart, in 16 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from kvtool.codecs.float16 import to_window, window_dtype, window_error
from kvtool.codecs.spec import Array, Payload, Spec, of_tokens
from kvtool.codecs.stage import Kind, Stage
from kvtool.codecs.stage_registry import register


@register
@dataclass(frozen=True)
class Window(Stage):
    """``x`` [..., T, D] becomes the tokens in between. Stored beside them are

    - ``sinks`` [..., min(sinks, T), D], the first tokens, which attention falls back on (arXiv 2309.17453);
    - ``recent`` [..., min(recent, T - sinks), D], the last tokens.

    Both are in x's own dtype where that has 16 bits, else float16; neither is there if its field is 0. Raises
    CodecError for kept entries beyond float16's range.
    """

    name: ClassVar[str] = "window"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "transform"
    on_any_device: ClassVar[bool] = True

    sinks: int = 0
    recent: int = 0

    def __post_init__(self) -> None:
        self.require(self.sinks in range(1 << 31), "sinks", self.sinks, "0 to 2**31 - 1")
        self.require(self.recent in range(1 << 31), "recent", self.recent, "0 to 2**31 - 1")

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        return cls(sinks=2, recent=3), cls(sinks=4), cls(recent=128)

    def plan(self, spec: Spec) -> Spec:
        x = self.x_of(spec, "...", "heads", "tokens", "channels")
        # The first and last of a packed layer are those of its first and last heads.
        for option, kept in (("sinks", self.sinks), ("recent", self.recent)):
            self.require(
                not (kept and spec.place.packed),
                option,
                kept,
                f"0 after pruning that leaves heads different tokens: leave {option} out, or let all heads keep the same "
                "ones, as heads=tokens does",
            )
        sinks, between, recent = self._sizes(x)
        parts = {"x": Array(_resized(x, between), x.dtype)}
        if self.sinks:
            parts["sinks"] = Array(_resized(x, sinks), window_dtype(x.dtype))
        if self.recent:
            parts["recent"] = Array(_resized(x, recent), window_dtype(x.dtype))
        return spec.replace("x", parts, self.name)

    def encode(self, x: Payload, spec: Spec) -> Payload:
        sinks, between, recent = torch.split(x["x"], self._sizes(spec.arrays["x"]), dim=-2)
        out = dict(x) | {"x": between.contiguous()}
        if self.sinks:
            out["sinks"] = to_window(self, "sink's entry", sinks)
        if self.recent:
            out["recent"] = to_window(self, "recent token's entry", recent)
        return out

    def decode(self, y: Payload, spec: Spec) -> Payload:
        array = spec.arrays["x"]
        names = [name for name, kept in (("sinks", self.sinks), ("x", True), ("recent", self.recent)) if kept]
        whole = torch.cat([y[name].to(array.dtype) for name in names], dim=-2)
        return spec.beside_x(y) | {"x": whole}

    def inputs_after(self, inputs: Payload, spec: Spec) -> Payload:
        sinks, between, _ = self._sizes(spec.arrays["x"])
        return of_tokens(inputs, slice(sinks, sinks + between))

    def tokens_after(self, tokens: range, spec: Spec) -> range | None:
        sinks, between, _ = self._sizes(spec.arrays["x"])
        return range(max(tokens.start - sinks, 0), min(max(tokens.stop - sinks, 0), between))

    def error(self, x: Payload, spec: Spec, inner: float = 0.0) -> float:
        return max(inner, window_error(x["x"]))

    def _sizes(self, x: Array) -> list[int]:
        tokens = x.shape[-2]
        sinks = min(self.sinks, tokens)
        recent = min(self.recent, tokens - sinks)
        return [sinks, tokens - sinks - recent, recent]


def _resized(x: Array, tokens: int) -> tuple[int, ...]:
    return (*x.shape[:-2], tokens, x.shape[-1])
