"""Rows of the benchmark ``blend``: policies, shares, the caches that they start from, and whether the question is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from kvtool.store.manifest import AVERAGED, RAW, averaged_name

SHARES = (0.05, 0.1, 0.15, 0.2, 0.3)
USUAL = 0.15
COMPRESSED = "klt"
RANDOM, SIMILAR, MIXED = "random", "similar", "mixed"
"""How neighbours were chosen, of which an averaged variant is the mean."""


@dataclass(frozen=True)
class Blended:
    """One way to blend. ``variant`` is that of every document; of the first, its own cache is taken.

    ``neighbours`` are those of an averaged variant, ``asks`` whether the question is known, and ``scale`` APE's where it is
    not the policy's.
    """

    policy: str
    share: float
    variant: str = RAW
    neighbours: str = ""
    asks: bool = False
    scale: float | None = None

    @property
    def source(self) -> str:
        return f"{self.variant}, {self.neighbours}" if self.neighbours else self.variant

    @property
    def method(self) -> str:
        return self.policy if self.scale is None else f"{self.policy} (0.9, {self.scale:g})"

    @property
    def name(self) -> str:
        return f"{self.method} {self.share:.0%} {self.source}{' asks' if self.asks else ''}"


def candidates(shares: Sequence[float] = SHARES) -> list[Blended]:
    """Rows of the mixed sets: every policy from caches of documents alone, ours and the closest from averaged ones too."""
    averaged, twin = (AVERAGED, RANDOM), (averaged_name(COMPRESSED), RANDOM)
    choices = (RANDOM, SIMILAR, MIXED)
    rows = [Blended("none", 0.0), *(Blended("none", 0.0, AVERAGED, choice) for choice in choices)]
    # At the best of its settings, and at what its authors' code has by default.
    rows += [Blended("ape", 0.0, scale=scale) for scale in (1.0, 0.9)]
    rows += [Blended("even", USUAL), Blended("cacheblend-keys", USUAL), Blended("cacheblend-gradual", USUAL)]
    for policy in ("legolink", "cacheblend", "drift"):
        rows += [Blended(policy, share) for share in shares]
    rows += [Blended("cacheblend", USUAL, AVERAGED, choice) for choice in choices]
    for policy in ("prophet", "infoflow", "fusionrag"):
        rows += [Blended(policy, share, asks=True) for share in shares]
    rows += [Blended(policy, USUAL, *averaged, asks=True) for policy in ("prophet", "infoflow")]
    rows += [Blended("fusionrag", share, AVERAGED, SIMILAR, asks=True) for share in shares]
    rows += [Blended("drift", share, asks=True) for share in shares]
    for neighbours in choices:
        for asks in (False, True):
            rows += [Blended("drift", share, AVERAGED, neighbours, asks) for share in shares]
    return [*rows, Blended("drift", USUAL, COMPRESSED, asks=True), Blended("drift", USUAL, *twin, asks=True)]


def usual_candidates() -> list[Blended]:
    """Rows of the other sets: what ``candidates`` has at the usual share, without what is compressed."""
    return [
        row for row in candidates((USUAL,)) if not row.variant.startswith(COMPRESSED) and row.scale != 0.9
    ]
