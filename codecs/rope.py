"""How a layer's keys were rotated: rotary position embeddings (RoPE, arXiv 2104.09864) as numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from kvtool.codecs.errors import CodecError, unexpected
from kvtool.kernels import dispatch

FREQUENCIES_AT_MOST = 4096
"""Of one rotation; each layer may name the same long list."""


@dataclass(frozen=True)
class Rope:
    """Channels ``start`` to ``start + R`` of a key at position p are turned by the angles ``p * inv_freq``.

    ``inv_freq`` [R/2] are float32 numbers; ``scaling`` multiplies the rotated channels. ``layout`` says which
    channels pair up: i with i + R/2 (``"half"``) or 2i with 2i + 1 (``"interleaved"``). From position
    ``up_to`` on the model turns otherwise (dynamic and longrope scaling).
    """

    inv_freq: tuple[float, ...]
    scaling: float = 1.0
    layout: Literal["half", "interleaved"] = "half"
    start: int = 0
    up_to: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "inv_freq": list(self.inv_freq)}

    @classmethod
    def from_json(cls, value: Any) -> Rope:
        """Undo ``to_json``. Raises CodecError, naming the field."""
        if not isinstance(value, Mapping) or value.keys() != set(cls.__dataclass_fields__):
            raise unexpected("rope: a rotation", value, str(sorted(cls.__dataclass_fields__)))
        frequencies, scaling, start, up_to = (value[f] for f in ("inv_freq", "scaling", "start", "up_to"))
        if not isinstance(frequencies, list) or len(frequencies) > FREQUENCIES_AT_MOST:
            raise CodecError(f"rope: inv_freq is no list of at most {FREQUENCIES_AT_MOST} numbers")
        if not all(_is_number(f) for f in frequencies):
            raise unexpected("rope: inv_freq", frequencies, "a list of numbers")
        if not _is_number(scaling) or scaling <= 0:
            raise unexpected("rope: scaling", scaling, "a number above 0")
        if value["layout"] not in ("half", "interleaved"):
            raise unexpected("rope: layout", value["layout"], "half or interleaved")
        for name, size in (("start", start), ("up_to", 0 if up_to is None else up_to)):
            if type(size) is not int or size < 0:
                raise unexpected(f"rope: {name}", size, "an integer from 0")
        return cls(tuple(map(float, frequencies)), float(scaling), value["layout"], start, up_to)


def turn(x: Tensor, rope: Rope, positions: Tensor, *, scaling: float = 1.0, undo: bool = False) -> Tensor:
    """``x`` [H, T, D] float32, turned in place by the angles of ``positions`` [T], or back by them with ``undo``.

    Angles add up: turning by a difference of positions moves keys from one place to another. ``scaling`` is that of
    ``rope`` for keys that have not been turned yet, or that are turned back; keys that only move keep their own.
    """
    if not rope.inv_freq:
        return x
    frequencies = torch.tensor(rope.inv_freq, dtype=torch.float32).to(x.device)
    cos, sin = dispatch.angles(positions.to(x.device), frequencies, scaling, undo=undo)
    part = x[..., rope.start :]
    dispatch.rotate(part, cos, sin, rope.layout, part)
    return x


def ropes(rope: Mapping[str, Any], n_layers: int) -> tuple[Rope, ...]:
    """How each layer's keys were rotated, from a KV's ``rope``; empty where that does not say.

    ``rotations`` lists the different ones, ``rotation_of_layer`` an index into them for each layer. Raises
    CodecError for entries that make no sense.
    """
    return _of_layers(rope, n_layers, "rotations", "rotation_of_layer")


def value_ropes(rope: Mapping[str, Any], n_layers: int) -> tuple[Rope, ...]:
    """How each layer's values were rotated, as ``ropes``. Only those of latent attention (MLA) are."""
    return _of_layers(rope, n_layers, "value_rotations", "value_rotation_of_layer")


def described(layers: Sequence[Rope], *, of_values: bool = False) -> dict[str, Any]:
    """Undo ``ropes``, or ``value_ropes``."""
    different = list(dict.fromkeys(layers))
    name = "value_rotation" if of_values else "rotation"
    return {
        f"{name}s": [rope.to_json() for rope in different],
        f"{name}_of_layer": [different.index(rope) for rope in layers],
    }


def _of_layers(rope: Mapping[str, Any], n_layers: int, listed: str, indices: str) -> tuple[Rope, ...]:
    if listed not in rope:
        return ()
    kinds, of_layer = rope[listed], rope.get(indices)
    if not isinstance(kinds, Sequence) or not isinstance(of_layer, Sequence) or len(of_layer) != n_layers:
        raise unexpected(f"rope: {indices}", of_layer, "one index for each layer")
    rotations = [Rope.from_json(kind) for kind in kinds]
    if not all(type(index) is int and 0 <= index < len(rotations) for index in of_layer):
        raise unexpected(f"rope: {indices}", of_layer, f"indices below {len(rotations)}")
    return tuple(rotations[index] for index in of_layer)


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) < 1e30
