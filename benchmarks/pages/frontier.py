"""The frontier: what nothing else beats in bits and in loss at once."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Json = Mapping[str, Any]

KL, KEPT = "kl", "kept"


@dataclass(frozen=True)
class Point:
    """One row in a picture: ``loss`` is what should be small. ``shown`` is the number that is drawn."""

    name: str
    family: str
    kind: str
    bits: float
    loss: float
    shown: float

    @property
    def label(self) -> str:
        """The name without its parameters' names, short enough for a picture."""
        setting, comma, _ = self.name.partition(",")
        family, *parameters = re.split(r":(?=\w+=)", setting)
        values = [parameter.partition("=")[2] for parameter in parameters]
        return " ".join(
            [family.removeprefix("transformers-").removeprefix("kvpress-"), "/".join(values)]
        ).strip() + ("*" if comma else "")


def frontier(points: Sequence[Point]) -> list[Point]:
    """The points with fewer bits than all others of as little loss, from few bits to many."""
    kept: list[Point] = []
    for point in sorted(points, key=lambda point: (point.bits, point.loss)):
        if not kept or point.loss < kept[-1].loss:
            kept.append(point)
    return kept


def points(result: Json, axis: str) -> list[Point]:
    """What can be drawn of each row: ``KL`` against the bits of documents, or ``KEPT`` against those of haystacks."""
    made = []
    for one in result["candidates"][1:]:
        retrieval = one["retrieval"] or {}
        if axis == KL and one["kl"] and one["kl"]["value"] > SMALLEST:
            value = one["kl"]["value"]
            made.append(Point(one["name"], one["family"], one["kind"], one["bits_per_value"], value, value))
        if axis == KEPT and retrieval.get("retention"):
            kept = retrieval["retention"]["value"]
            bits = retrieval["bits_per_value"]
            made.append(Point(one["name"], one["family"], one["kind"], bits, 1 - kept, kept))
    return made


SMALLEST = 1e-6
"""Nats per token. A smaller KL comes from rounding, and has no place on a logarithmic axis."""
