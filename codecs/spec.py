"""Payloads that flow between stages, and their specs: shapes, dtypes and places, known before any data flows."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from kvtool.codecs.errors import CodecError
from kvtool.codecs.rope import Rope

Json: TypeAlias = "bool | int | float | str | Sequence[Json] | Mapping[str, Json] | None"
Payload: TypeAlias = Mapping[str, Tensor]

POSITIONS, TOKEN_IDS = "positions", "token_ids"
"""Inputs that every segment has, in decoding too."""

ATTENTION, IMPORTANCE = "attention", "importance"

BY_TOKEN = frozenset({POSITIONS, TOKEN_IDS, ATTENTION, IMPORTANCE})
"""Inputs that have an entry for each token, along their last axis."""

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""Dtypes of keys and values that stages accept."""


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
            expected = f"{bound}{list(self.shape)} {self.dtype}"
            raise CodecError(f"{name} is {list(shape)} {tensor.dtype}, expected {expected}")


def check_codes(name: str, codes: Tensor, levels: int) -> None:
    """Refuse codes that are not below ``levels``."""
    if codes.numel() and (largest := int(codes.max())) >= levels:
        raise CodecError(f"{name} holds code {largest}, expected below {levels}")


@dataclass(frozen=True)
class Place:
    """Where a payload comes from: ``count`` layers from ``first`` on, of the ``total`` that the model has.

    ``ropes`` says how the keys of each of these layers were rotated; it is empty where nobody knows. ``start`` is
    the position of the segment's first token; None where it is not known. ``pruned`` says that layers lost tokens, and
    ``packed`` that the tokens of different heads are in a row.
    """

    first: int = 0
    count: int = 1
    total: int = 1
    ropes: tuple[Rope, ...] = ()
    start: int | None = 0
    pruned: bool = False
    packed: bool = False


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

    @classmethod
    def of(cls, x: Tensor, place: Place = Place()) -> Spec:
        """The spec of a payload that is ``x`` alone."""
        return cls({"x": Array(tuple(x.shape), x.dtype)}, place=place)

    def beside_x(self, payload: Payload) -> dict[str, Tensor]:
        """The tensors beside ``x``: a stage that works on ``x`` passes them on."""
        return {name: payload[name] for name in self.arrays if name != "x"}

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
