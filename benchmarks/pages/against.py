"""How many bits one recipe alone needs to be as good as others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.pages.curves import Point, ratio_at

Json = Mapping[str, Any]


@dataclass(frozen=True)
class Against:
    """``at_kl`` and ``at_kept`` are the bits that the other needs for the same KL and the same answers; None: it never is
    as good. Without ``counts_answers`` KL alone decides. ``at_most``: its curve ends before this KL, and it may need fewer bits.
    """

    name: str
    bits: float
    at_kl: float | None
    at_kept: float | None
    counts_answers: bool
    at_most: bool = False

    @property
    def share(self) -> float | None:
        """Its bits divided by those that the other needs to be as good in both."""
        needed = [self.at_kl, self.at_kept] if self.counts_answers else [self.at_kl]
        known = [bits for bits in needed if bits is not None]
        return self.bits / max(known) if len(known) == len(needed) else None

    @property
    def is_bound(self) -> bool:
        """Whether the share may be larger: the KL decides, and there the curve has ended."""
        return self.at_most and self.at_kl is not None and self.at_kl > 1.001 * (self.at_kept or 0.0)


def against(alone: Sequence[Json], others: Sequence[Json]) -> list[Against]:
    """A row for each of ``others``, all candidates of an evaluation, held against the curve of ``alone``."""
    curve = [Point(one["name"], 16 / one["bits_per_value"], one["kl"]["value"]) for one in alone if one["kl"]]
    kept = [(one["bits_per_value"], _kept(one)) for one in alone]
    rows = []
    for one in others:
        reached = ratio_at(curve, one["kl"]["value"]) if one["kl"] else None
        wanted = _kept(one)
        as_good = [
            bits for bits, share in kept if wanted is not None and share is not None and share >= wanted
        ]
        rows.append(
            Against(
                one["name"],
                one["bits_per_value"],
                16 / reached.ratio if reached else None,
                min(as_good, default=None),
                wanted is not None,
                reached is not None and reached.least,
            )
        )
    return rows


def _kept(one: Json) -> float | None:
    retention = (one["retrieval"] or {}).get("retention")
    return float(retention["value"]) if retention else None
