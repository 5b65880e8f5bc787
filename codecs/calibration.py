"""Calibrations: what a recipe learned about a model, shared by all segments that it encodes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from types import MappingProxyType

import blake3
import torch
from torch import Tensor

from kvtool.codecs.errors import CodecError
from kvtool.codecs.format import container
from kvtool.codecs.kv import KV, LayerKV
from kvtool.codecs.spec import Array, Json

FORMAT = 1


@dataclass(frozen=True)
class Sample:
    """One segment's cache to calibrate on.

    ``gradients``, if there are any, are those of a loss with respect to the keys, as they are stored, and to the
    values: layer by layer, of the same shapes, in float32.
    """

    kv: KV
    gradients: tuple[LayerKV, ...] | None = None


@dataclass(frozen=True, eq=False)
class Calibration:
    """Facts and tensors that a recipe's stages plan and compute with.

    ``facts`` are JSON values that planning needs, such as sizes and ranks. ``tensors`` are what coding computes with.

    ``facts`` has under ``model`` the fingerprint of the model and under ``source`` what was sampled, once ``made``
    has said so. Facts and tensors are kept as they would be read back: lists for tuples, names sorted. Two are
    equal if their bytes are. Raises CodecError for what cannot be stored, NaN and infinity included.
    """

    method: str
    facts: Mapping[str, Json]
    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        if not isinstance(self.method, str) or not self.method:
            raise CodecError(f"calibration: method is {str(self.method)[:80]!r}, expected a name")
        tensors = {name: self.tensors[name].detach() for name in sorted(self.tensors)}
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not torch.isfinite(tensor.double()).all():
                raise CodecError(f"calibration: tensor {name!r} holds NaN or infinity")
        try:
            facts = json.loads(container.canonical_json(dict(self.facts)))
            container.header(container.layout(container.entries(tensors)), {"kvtool": self.method})
        except CodecError:
            raise
        except (TypeError, ValueError, RecursionError) as error:
            raise CodecError(f"calibration: cannot be stored ({str(error)[:200]})") from error
        object.__setattr__(self, "facts", facts)
        object.__setattr__(self, "tensors", tensors)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Calibration) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Calibration({self.method!r}, {self.digest[:12]}…)"

    @cached_property
    def digest(self) -> str:
        """BLAKE3 over its bytes, 64 hex digits. Artifacts name it by this."""
        return str(blake3.blake3(self.to_bytes()).hexdigest())

    @cached_property
    def nbytes(self) -> int:
        """Of its file."""
        return len(self.to_bytes())

    @property
    def model(self) -> str:
        """The fingerprint of its model; empty if it names none."""
        return str(self.facts.get("model", ""))

    def made(self, *, model: str, source: Json) -> Calibration:
        """A copy that names its model's fingerprint and what it was made from."""
        return dataclasses.replace(self, facts={**self.facts, "model": model, "source": source})

    @property
    def label(self) -> str:
        """Its name in error messages."""
        return f"calibration {self.digest[:12]}… ({self.method})"

    def tensor(self, name: str, array: Array) -> Tensor:
        """The tensor of that name. Raises CodecError unless it is there and of the array's shape and dtype."""
        if name not in self.tensors:
            raise CodecError(f"{self.label}: has no tensor {name!r}")
        array.check(f"{self.label}: {name}", self.tensors[name])
        return self.tensors[name]

    def fact(self, *path: str) -> Json:
        """The fact at ``path``. Raises CodecError, with what is missing, if there is none."""
        found: Json = self.facts
        for depth, key in enumerate(path, 1):
            if not isinstance(found, dict) or key not in found:
                raise CodecError(
                    f"{self.label}: has no {' '.join(path[:depth])}, expected one for each group of layers: it was made of "
                    "caches of other sizes, or for other ratios"
                )
            found = found[key]
        return found

    def to_bytes(self) -> bytes:
        """A safetensors file: the same content gives the same bytes."""
        about = {"kind": "calibration", "format": FORMAT, "method": self.method, "facts": self.facts}
        return container.to_bytes(self.tensors, {"kvtool": container.canonical_json(about).decode()})

    @classmethod
    def from_bytes(cls, data: bytes) -> Calibration:
        """Undo ``to_bytes``. Raises CodecError, naming what is wrong, for bytes that ``to_bytes`` never gives."""
        tensors, metadata = container.from_bytes(data)
        try:
            about = json.loads(metadata["kvtool"])
            kind, version = about["kind"], about["format"]
            if kind != "calibration" or type(version) is not int or version < 1:
                raise CodecError(f"calibration: is a {str(kind)[:80]!r} of format {str(version)[:80]}")
            if version > FORMAT:
                raise CodecError(
                    f"calibration: is of format {version}, this kvtool reads up to {FORMAT}; upgrade kvtool"
                )
            found = cls(about["method"], about["facts"], tensors)
            same = found.to_bytes() == data
        except CodecError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CodecError(
                f"calibration: its header is not a calibration's ({type(error).__name__})"
            ) from error
        if not same:
            raise CodecError("calibration: its bytes are not as kvtool writes them")
        return found


def entry(first: int, side: str) -> str:
    """The name, in a calibration, of the keys or values of the group of layers that starts at ``first``."""
    return f"{first:04d}.{side}"


def refuse_too_few(method: str, tokens: int, channels: int, tokens_are: str = "tokens") -> None:
    """Raises CodecError for fewer tokens than a layer's keys or values have channels.

    Fewer do not span even one layer, and what is estimated from them is mostly chance.
    """
    if tokens < channels:
        expected = f"expected at least {channels}, one for each channel of a layer's keys or values"
        raise CodecError(f"{method}: {tokens} {tokens_are} are too few, {expected}")


NONE: Mapping[str, Calibration] = MappingProxyType({})
"""The empty mapping of calibrations by digest."""
