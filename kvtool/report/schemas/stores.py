"""Values of commands that look after a store."""

from __future__ import annotations

from typing import Any

from kvtool.report.schemas.value import ModelName, Problem, Value


class Listed(Value):
    """A document in the list that ``ls`` prints."""

    name: str
    segments: int
    tokens: int
    model: str
    blend: bool
    """Whether it was blended from other documents."""
    variants: dict[str, int]
    """Bytes of each variant, by its name."""


class ShownVariant(Value):
    """One artifact of a segment."""

    digest: str
    file: str
    bytes: int
    bits_per_value: float
    resident_bytes: int
    """Bytes of the cache once it is loaded."""
    recipe: dict[str, Any] | None
    """What made it, as its manifest has it; null for the raw cache."""


class ShownSegment(Value):
    """A segment. ``characters`` are where it begins and ends in the document's text."""

    segment: int
    tokens: int
    characters: tuple[int, int]
    identity: str
    variants: dict[str, ShownVariant]


class ShownPrefix(Value):
    """The tokens before every segment."""

    identity: str
    digest: str
    tokens: int
    origin: dict[str, Any]
    """What it was made from: its ``kind`` and what belongs to that."""


class ShownCalibration(Value):
    """A calibration that the document's variants need."""

    digest: str
    method: str
    file: str
    bytes: int
    variants: list[str]


class ShownBlend(Value):
    """What a blend is made of, in order, and how."""

    parts: list[dict[str, Any]]
    """Each a ``document`` with the ``segments`` that were blended, or a ``text``."""
    variant: str
    separator: str
    policy: str
    recompute: float
    outdated: dict[str, str]
    """Documents that are others by now, and why."""


class Show(Value):
    """One document. ``blend`` is null for one that was prefilled, and where no record says what was blended."""

    name: str
    model: ModelName
    prefix: ShownPrefix
    blend: ShownBlend | None
    segments: list[ShownSegment]
    calibrations: list[ShownCalibration]


class Broken(Problem):
    """Something that is not as it was written."""

    document: str | None
    """The first of the documents that use it; null for a calibration."""


class Verify(Value):
    """Artifacts and calibrations by digest, and documents that cannot be read by name."""

    intact: int
    broken: dict[str, Broken]
    removed: list[str]
    outdated: dict[str, list[str]]
    """Blends whose documents are others by now, and those documents."""


class Collected(Value):
    """What ``gc`` removed, or would."""

    dry_run: bool
    documents: dict[str, str]
    """Documents that a rule removes, and which rule."""
    trimmed: list[str]
    """Documents that lose variants."""
    removed: list[str]
    """Files of artifacts."""
    bytes: int
    """What the store takes afterwards."""
    writers: list[str]
    """Processes that may not have committed yet what a dry run names."""


class Removed(Value):
    """What ``rm`` removed, or would."""

    dry_run: bool
    removed: list[str]
    freed: int | None
    """Artifacts that no other document uses; null in a dry run."""


class Pinned(Value):
    """All documents that are pinned, after what was done."""

    pinned: list[str]


class Key(Value):
    """A key that was made, and its files. One that encrypts has no public half."""

    id: str
    private: str
    public: str | None


class Encrypted(Value):
    """Files that were encrypted, or would be, of all that the store has; the rest is encrypted with this key already."""

    key: str
    dry_run: bool
    encrypted: int
    files: int


class Signed(Value):
    """Documents that were signed, or would be, and those that the key had signed before."""

    key: str
    dry_run: bool
    signed: list[str]
    unchanged: list[str]


class _Transfer(Value):
    url: str
    store: str
    dry_run: bool
    unchanged: list[str]
    problems: list[Problem]
    bytes: int
    """Those that were copied or, in a dry run, would be."""


class Pushed(_Transfer):
    """Documents that were copied out of the store."""

    pushed: list[str]


class Pulled(_Transfer):
    """Documents that were copied into the store."""

    pulled: list[str]


class ServeLine(Value):
    """The line that starts an engine over a store."""

    command: list[str]
    kv_transfer_config: dict[str, Any]
    model: str
    dtype: str
    documents: int
    """Those that the engine can load."""
    others: dict[str, int]
    """Of the rest, how many for each reason."""
