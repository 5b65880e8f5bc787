"""The contract of a pipeline's stages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, TypeAlias

import torch

from kvtool.codecs.calibration import Calibration
from kvtool.codecs.errors import CodecError
from kvtool.codecs.spec import FLOATS, Array, Json, Payload, Spec

Kind: TypeAlias = Literal["prune", "transform", "quantize", "entropy"]


@dataclass(frozen=True)
class BaseStage(ABC):
    """What all stages have: a name, a version and parameters."""

    name: ClassVar[str]
    version: ClassVar[int]
    kind: ClassVar[Kind]

    def to_config(self) -> dict[str, Json]:
        """Name, version and every field as JSON values, a calibration as its digest; ``stage_from_config`` undoes it."""
        config: dict[str, Json] = {"name": self.name, "version": self.version}
        return config | {field.name: _to_json(getattr(self, field.name)) for field in fields(self)}

    @property
    def label(self) -> str:
        """Its kind and name, for error messages."""
        return f"{self.kind} stage {self.name!r}"

    @property
    def calibrations(self) -> tuple[Calibration, ...]:
        """Those that its fields hold."""
        values = (getattr(self, field.name) for field in fields(self))
        return tuple(value for value in values if isinstance(value, Calibration))

    def require(self, holds: bool, field: str, value: object, expected: str) -> None:
        """Raise CodecError, naming the stage, the field, the value and the expectation, unless it holds."""
        if not holds:
            raise CodecError(f"{self.label}: {field} is {value!r}, expected {expected}")


@dataclass(frozen=True)
class Stage(BaseStage):
    """One step of a pipeline, on the keys or the values of one layer, or of a group of layers.

    Subclasses are small frozen dataclasses: the fields are the parameters and the configuration, checked on
    construction. A payload starts as ``{"x": [H, T, D]}``, or ``[L, H, T, D]`` in a pipeline over groups of
    layers; a stage replaces what it works on and may add side tensors (scales, a recent window), which later
    stages see under their own names. A payload's tensors are never written to.

    An input that a stage ``needs`` beyond keys and values is in the payload that ``encode`` gets, under its name,
    and is not returned: ``positions`` [T] int64; ``attention`` [H, T] float32, the attention that later tokens pay to
    each; ``queries`` [Q, P, D] float32, a sample. ``decode`` gets ``positions`` alone, if it is needed. Over
    a group of layers each has the layers in front.

    A stage that uses what a recipe learned about the model has a field ``calibration: Calibration``. Its content is not
    trusted: ``plan`` checks the shape of each tensor that it uses (``Calibration.tensor``).
    """

    needs: ClassVar[frozenset[str]] = frozenset()

    on_any_device: ClassVar[bool] = False
    """Whether ``decode`` gives its results on the device of its payload, whichever that is. Inputs are on the CPU."""

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        """Configurations that together reach every path. Tests and golden artifacts are made of them.

        Their calibrations, if they hold any, fit layers 2 and 3 of a model with 2 heads of 6 channels.
        """
        return (cls(),)

    @abstractmethod
    def plan(self, spec: Spec) -> Spec:
        """The spec of what ``encode`` gives for ``spec``. Raises CodecError if it cannot work on that."""

    @abstractmethod
    def encode(self, x: Payload, spec: Spec) -> Payload:
        """Encode a payload of ``spec``. Raises CodecError for content that it cannot represent."""

    @abstractmethod
    def decode(self, y: Payload, spec: Spec) -> Payload:
        """Undo ``encode``; ``spec`` is again that of the decoded payload.

        ``y`` has the planned names, dtypes and shapes, but any content: it is decoded to ``spec`` or refused
        with CodecError, within the memory that the plan bounds.
        """

    def decode_tokens(self, y: Payload, spec: Spec, tokens: range | None) -> Payload:
        """As ``decode``, but of the tensor ``codes`` or ``x`` only ``tokens`` are wanted; the rest may be wrong.

        None stands for all. A stage that cannot leave anything out decodes all.
        """
        return self.decode(y, spec)

    def inputs_after(self, inputs: Payload, spec: Spec) -> Payload:
        """``inputs`` cut to the tokens that this stage passes on, for the stages after it."""
        return inputs

    def tokens_after(self, tokens: range, spec: Spec) -> range | None:
        """The tokens of this stage's output that it needs to decode ``tokens`` of its input; None for all."""
        return None

    def suited(self, x: Payload, spec: Spec) -> Stage:
        """The stage to encode ``x`` with: this one, or another if ``x`` is unlike the calibration's samples."""
        return self

    def error(self, x: Payload, spec: Spec, inner: float = 0.0) -> float:
        """The largest absolute error that an entry may show after ``decode(encode(x))``.

        ``inner`` is that of the stages after this one, so that a pipeline's bound follows stage by stage. A
        stage is exact unless it overrides this.
        """
        return inner

    def trial(self, x: Payload, spec: Spec) -> tuple[Payload, float, float]:
        """``x`` encoded; the largest error that its entries show when decoded, and their largest magnitude then."""
        encoded = self.encode(x, spec)
        decoded = self.decode({**x, **encoded}, spec)["x"].double()
        return encoded, (decoded - x["x"]).abs().amax().item(), decoded.abs().amax().item()

    def x_of(self, spec: Spec, *axes: str) -> Array:
        """The planned ``x``: floats along these axes, after any others where the first is "...".

        Raises CodecError, naming the stage, if it is missing or something else.
        """
        x = spec.arrays.get("x", Array((), torch.float32))
        open_front = axes[0] == "..."
        fits = len(x.shape) >= len(axes) - 1 if open_front else len(x.shape) == len(axes)
        self.require(fits, "shape of x", list(x.shape), f"[{', '.join(axes)}]")
        self.require(x.dtype in FLOATS, "dtype of x", x.dtype, "float32, float16 or bfloat16")
        return x


def _to_json(value: Json | Calibration) -> Json:
    if isinstance(value, Calibration):
        return value.digest
    return [_to_json(item) for item in value] if isinstance(value, tuple) else value
