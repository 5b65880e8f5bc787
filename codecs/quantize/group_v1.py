"""Version 1 of the group stage, which kept a window of recent tokens itself; ``window`` does that now."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch

from kvtool.codecs.float16 import window_dtype
from kvtool.codecs.quantize.group import Group
from kvtool.codecs.spec import Array, Payload, Spec
from kvtool.codecs.stage import Kind, Stage
from kvtool.codecs.stage_registry import register
from kvtool.codecs.transform.window import Window


@register
@dataclass(frozen=True)
class GroupV1(Stage):
    """``Window(recent=recent)`` and ``Group(bits, group, axis)`` in one, for artifacts that name it."""

    name: ClassVar[str] = "group"
    version: ClassVar[int] = 1
    kind: ClassVar[Kind] = "quantize"

    bits: int = 2
    group: int = 32
    recent: int = 128
    axis: Literal["token", "channel"] = "token"

    def __post_init__(self) -> None:
        _ = self._window, self._group

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        return cls(group=4, recent=3), cls(group=4, recent=3, bits=5, axis="channel"), cls(recent=0)

    def plan(self, spec: Spec) -> Spec:
        # Without a window of its own it stores an empty one, which must not take another's place.
        self.require("recent" not in spec.arrays, "tensors", sorted(spec.arrays), "none called recent")
        planned = self._group.plan(self._window.plan(spec))
        x = spec.arrays["x"]
        none = Array((x.shape[0], 0, x.shape[2]), window_dtype(x.dtype))
        arrays = dict(planned.arrays)
        recent = arrays.pop("recent", none)
        return planned.with_arrays({**arrays, "recent": recent})

    def encode(self, x: Payload, spec: Spec) -> Payload:
        array = self.plan(spec).arrays["recent"]
        empty = {} if self.recent else {"recent": torch.empty(array.shape, dtype=array.dtype)}
        return {**self._group.encode(self._window.encode(x, spec), self._window.plan(spec)), **empty}

    def decode(self, y: Payload, spec: Spec) -> Payload:
        return self._window.decode(self._group.decode(y, self._window.plan(spec)), spec)

    def error(self, x: Payload, spec: Spec, inner: float = 0.0) -> float:
        between = self._window.plan(spec)
        return self._window.error(x, spec, self._group.error(self._window.encode(x, spec), between, inner))

    @property
    def _window(self) -> Window:
        return Window(recent=self.recent)

    @property
    def _group(self) -> Group:
        return Group(bits=self.bits, group=self.group, axis=self.axis)
