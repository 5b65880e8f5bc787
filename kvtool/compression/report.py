"""The report of a run of ``compress``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from kvtool.calibration.search import Setting
from kvtool.compression.joint.choice import Choice
from kvtool.compression.plan import Plan, Sizes
from kvtool.compression.preset import ChosenPreset
from kvtool.compression.target import Target
from kvtool.errors import KvtoolError
from kvtool.store.segments import SegmentRef


@dataclass
class Report:
    """The work that a run has done so far.

    Bytes are those of the source of each document that has the variant now, of the variant, and of the calibrations that it
    needs, which all documents of a model share. ``fallback_segments`` are segments so unlike the calibration's text that the
    fallback coded them, in more bytes; ``unlike`` are their documents, and what these take. ``entries`` are the states of the
    documents' entries as this run left them.
    """

    variant: str = ""
    dry_run: bool = False
    compressed: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    fallback_segments: list[SegmentRef] = field(default_factory=list)
    unlike: dict[str, Sizes] = field(default_factory=dict)
    problems: list[KvtoolError] = field(default_factory=list)
    entries: dict[str, str] = field(default_factory=dict)
    documents_total: int = 0
    segments_total: int = 0
    segments_done: int = 0
    raw_nbytes: int = 0
    nbytes: int = 0
    calibration_nbytes: int = 0
    n_elements: int = 0
    seconds: float = 0.0
    target: Target | None = None
    setting: Setting | Choice | None = None
    preset: ChosenPreset | None = None

    @property
    def bits_per_value(self) -> float:
        return 8 * self.nbytes / self.n_elements if self.n_elements else 0.0

    def start(self, plan: Plan) -> None:
        """Counts the documents and segments of a plan."""
        self.segments_total, self.segments_done = plan.segments_total, plan.segments_done
        self.problems += plan.refused
        self.unchanged += plan.unchanged
        self.entries |= plan.entries
        for sizes in plan.unchanged.values():
            self.count(sizes)

    def count(self, sizes: Sizes) -> None:
        """Counts a document that has the variant."""
        self.raw_nbytes += sizes.raw_nbytes
        self.nbytes += sizes.nbytes
        self.n_elements += sizes.n_elements

    @property
    def others_bits_per_value(self) -> float | None:
        """Of the documents that are like the calibration's text; None if there are none."""
        n_elements = self.n_elements - sum(sizes.n_elements for sizes in self.unlike.values())
        nbytes = self.nbytes - sum(sizes.nbytes for sizes in self.unlike.values())
        return 8 * nbytes / n_elements if n_elements else None

    def repeated(self, names: Iterable[str]) -> Report:
        """The report of the same run, done again: there is nothing left to do. ``names`` give the documents' order."""
        done = {*self.unchanged, *self.compressed}
        unchanged = [name for name in dict.fromkeys(names) if name in done]
        return replace(self, unchanged=unchanged, compressed=[], fallback_segments=[], unlike={}, seconds=0.0)

    def to_json(self) -> dict[str, Any]:
        return {
            "variant": self.variant,
            "dry_run": self.dry_run,
            "compressed": list(self.compressed),
            "unchanged": list(self.unchanged),
            "fallback_segments": [
                {"document": r.document, "segment": r.segment} for r in self.fallback_segments
            ],
            "unlike": {name: round(sizes.bits_per_value, 4) for name, sizes in self.unlike.items()},
            "problems": [error.to_json() for error in self.problems],
            "raw_bytes": self.raw_nbytes,
            "bytes": self.nbytes,
            "calibration_bytes": self.calibration_nbytes,
            "bits_per_value": round(self.bits_per_value, 4),
            "preset": self.preset and self.preset.to_json(),
            "choice": self.setting.to_json() if isinstance(self.setting, Choice) else None,
            "seconds": round(self.seconds, 3),
        }
