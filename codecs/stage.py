"""What a stage of a pipeline is, and what it plans with."""

from __future__ import annotations

import dataclasses
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Literal, TypeAlias

import torch
from torch import Tensor

from kvtool.codecs.calibration import Calibration
from kvtool.codecs.errors import CodecError
from kvtool.codecs.rope import Rope

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
Kind: TypeAlias = Literal["prune", "transform", "quantize", "entropy"]
Payload: TypeAlias = Mapping[str, Tensor]

POSITIONS, TOKEN_IDS = "positions", "token_ids"
"""Inputs that every segment has, in decoding too."""

ATTENTION, IMPORTANCE = "attention", "importance"

BY_TOKEN = frozenset({POSITIONS, TOKEN_IDS, ATTENTION, IMPORTANCE})
"""Inputs that have an entry for each token, along their last axis."""

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""What stages compute with."""


def of_tokens(inputs: Payload, some: slice | Tensor) -> Payload:
    """``inputs``, those that have an entry for each token cut to ``some`` tokens: a slice, or indices."""
    return {name: t[..., some] if name in BY_TOKEN else t for name, t in inputs.items()}


@dataclass(frozen=True)
class Array:
    """Shape and dtype of one tensor of a payload.

    ``at_most``: a one-dimensional uint8 tensor whose length is known only up to a bound.
    ``levels``: an integer tensor's entries lie in ``[0, levels)``; entropy coders size their codes by it.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    at_most: bool = False
    levels: int | None = None

    def __post_init__(self) -> None:
        if any(size < 0 for size in self.shape) or self.nbytes >= 1 << 62:
            raise CodecError(f"array of shape {list(self.shape)}: sizes are negative or past 2**62 bytes")
        if self.at_most and (len(self.shape) != 1 or self.dtype != torch.uint8):
            raise CodecError(f"array of shape {list(self.shape)}: only 1-D uint8 has an open length")

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of its content; the bound, if ``at_most``."""
        return self.numel * self.dtype.itemsize

    @property
    def bits(self) -> int:
        """Bits that a code below ``levels`` takes at a fixed length."""
        return max(((self.levels or 1) - 1).bit_length(), 1)

    def check(self, name: str, tensor: Tensor) -> None:
        """Refuse a tensor that is not what was planned, before its content is touched."""
        shape = tuple(tensor.shape)
        fits = shape == self.shape or (self.at_most and len(shape) == 1 and shape[0] <= self.shape[0])
        if tensor.dtype != self.dtype or not fits:
            bound = "at most " if self.at_most else ""
            raise CodecError(
                f"{name} is {list(shape)} {tensor.dtype}, expected {bound}{list(self.shape)} {self.dtype}"
            )


@dataclass(frozen=True)
class Place:
    """Where a payload comes from: ``count`` layers from ``first`` on, of the ``total`` that the model has.

    ``ropes`` says how the keys of each of these layers were rotated; it is empty where nobody knows. ``start`` is
    the position of the first token; None where layers hold different tokens.
    """

    first: int = 0
    count: int = 1
    total: int = 1
    ropes: tuple[Rope, ...] = ()
    start: int | None = 0


@dataclass(frozen=True)
class Spec:
    """The tensors at one point of a pipeline, by name, where they come from, and what the stages so far need.

    ``needs`` names inputs beyond keys and values, such as ``"attention"``, so that what cannot run is refused
    when it is planned.
    """

    arrays: Mapping[str, Array]
    needs: frozenset[str] = frozenset()
    place: Place = Place()

    @property
    def nbytes(self) -> int:
        """An upper bound on the bytes of all tensors."""
        return sum(array.nbytes for array in self.arrays.values())

    def replace(self, name: str, arrays: Mapping[str, Array], stage: str) -> Spec:
        """The spec with ``arrays`` in place of ``name``; the other tensors pass through under their names.

        Raises CodecError, naming the stage, if ``name`` is missing or a name is already another tensor's.
        """
        rest = {key: array for key, array in self.arrays.items() if key != name}
        if name not in self.arrays or rest.keys() & arrays.keys():
            raise CodecError(f"stage {stage!r}: gets {sorted(self.arrays)}, expected {name} and none it adds")
        return self.with_arrays({**rest, **arrays})

    def with_arrays(self, arrays: Mapping[str, Array]) -> Spec:
        return dataclasses.replace(self, arrays=arrays)

    def check(self, payload: Payload, where: str) -> None:
        """Refuse a payload whose names, dtypes or shapes are not the planned ones."""
        if payload.keys() != self.arrays.keys():
            raise CodecError(f"{where}: holds {sorted(payload)}, expected {sorted(self.arrays)}")
        for name, array in self.arrays.items():
            array.check(f"{where}: {name}", payload[name])


@dataclass(frozen=True)
class Stage(ABC):
    """One step of a pipeline, on the keys or the values of one layer, or of a group of layers.

    Subclasses are small frozen dataclasses: the fields are the parameters and the configuration, checked on
    construction. A payload starts as ``{"x": [H, T, D]}``, or ``[L, H, T, D]`` in a pipeline over groups of
    layers; a stage replaces what it works on and may add side tensors (scales, a recent window), which later
    stages see under their own names. A payload's tensors are never written to.

    What a stage ``needs`` beyond keys and values lies in the payload that ``encode`` gets, under its name,
    and is not given back: ``positions`` [T] int64; ``attention`` [H, T] float32, what later tokens pay to
    each; ``queries`` [Q, P, D] float32, a sample. ``decode`` gets ``positions`` alone, if it is needed. Over
    a group of layers each has the layers in front.

    What a recipe learned about the model beforehand is a field, ``calibration: Calibration``. Its content may come
    from anywhere: ``plan`` holds each tensor that it uses against a shape (``Calibration.tensor``).
    """

    name: ClassVar[str]
    version: ClassVar[int]
    kind: ClassVar[Kind]
    needs: ClassVar[frozenset[str]] = frozenset()

    @classmethod
    def examples(cls) -> tuple[Stage, ...]:
        """Configurations that between them reach every path: what tests and golden artifacts are made of.

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

    def inputs_behind(self, inputs: Payload, spec: Spec) -> Payload:
        """What the stages behind this one may need, by name: ``inputs``, but of the tokens that it leaves them."""
        return inputs

    def behind(self, tokens: range, spec: Spec) -> range | None:
        """The tokens behind this stage from which it decodes ``tokens`` in front of it; None for all."""
        return None

    def suited(self, x: Payload, spec: Spec) -> Stage:
        """The stage to encode ``x`` with: this one, or in its place one that does better on what is far from all that
        its calibration was made from."""
        return self

    def error(self, x: Payload, spec: Spec, inner: float = 0.0) -> float:
        """The largest absolute error that an entry may show after ``decode(encode(x))``.

        ``inner`` is the same of the stages behind this one, so that a pipeline's bound is theirs in turn. A
        stage that does not say otherwise is exact.
        """
        return inner

    def to_config(self) -> dict[str, Json]:
        """Name, version and every field, as JSON values: ``registry.stage_from_config`` undoes it.

        Of a calibration it is the digest.
        """
        config: dict[str, Json] = {"name": self.name, "version": self.version}
        return config | {field.name: _to_json(getattr(self, field.name)) for field in fields(self)}

    @property
    def calibrations(self) -> tuple[Calibration, ...]:
        """Those that its fields hold."""
        values = (getattr(self, field.name) for field in fields(self))
        return tuple(value for value in values if isinstance(value, Calibration))

    def x_of(self, spec: Spec, *axes: str) -> Array:
        """The planned ``x``: floats along these axes, after any others where the first is "...".

        Raises CodecError, naming the stage, if it is something else or not there.
        """
        x = spec.arrays.get("x", Array((), torch.float32))
        open_front = axes[0] == "..."
        fits = len(x.shape) >= len(axes) - 1 if open_front else len(x.shape) == len(axes)
        self.require(fits, "shape of x", list(x.shape), f"[{', '.join(axes)}]")
        self.require(x.dtype in FLOATS, "dtype of x", x.dtype, "float32, float16 or bfloat16")
        return x

    def require(self, holds: bool, field: str, value: object, expected: str) -> None:
        """Raise CodecError, naming the stage, the field, the value and what was expected, unless it holds."""
        if not holds:
            raise CodecError(f"{self.kind} stage {self.name!r}: {field} is {value!r}, expected {expected}")


def _to_json(value: Json | Calibration) -> Json:
    if isinstance(value, Calibration):
        return value.digest
    return [_to_json(item) for item in value] if isinstance(value, tuple) else value
