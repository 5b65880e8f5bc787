"""Values of commands that make caches."""

from __future__ import annotations

from typing import Literal

from kvtool.report.schemas.measured import Check
from kvtool.report.schemas.value import ModelName, Problem, Value


class Prefill(Value):
    """Documents that were prefilled, or would be, by name."""

    store: str
    model: ModelName
    dry_run: bool
    prefilled: list[str]
    unchanged: list[str]
    replaced: dict[str, str]
    """Documents that came from another file before, and that file."""
    averaged: list[str]
    without_neighbours: list[str]
    collected: list[str]
    problems: list[Problem]
    warnings: list[Problem]
    passed_over: dict[str, int]
    """How many files were not read, by reason."""
    tokens: int
    seconds: float


class FallbackSegment(Value):
    """A segment that the recipe could not compress, and that was stored otherwise."""

    document: str
    segment: int


class ChosenPreset(Value):
    """The preset's setting. What was measured of it is null where nothing was."""

    name: str
    parameter: str
    setting: float
    met: bool | None
    """Whether the promise is kept on this model."""
    kl: float | None
    bits_per_value: float | None
    retrieval: float | None


class Choice(Value):
    """The setting that was chosen among ``candidates``, and what it costs."""

    parameters: dict[str, float]
    bits_per_value: float
    resident: float
    kl: float | None
    retrieval: float | None
    candidates: int


class Compress(Value):
    """Documents that were compressed, or would be, by name."""

    variant: str
    dry_run: bool
    compressed: list[str]
    unchanged: list[str]
    fallback_segments: list[FallbackSegment]
    unlike: dict[str, float]
    """Documents unlike the calibration's text, and their bits per value."""
    problems: list[Problem]
    raw_bytes: int
    bytes: int
    calibration_bytes: int
    bits_per_value: float
    preset: ChosenPreset | None
    choice: Choice | None
    seconds: float


class Blend(Value):
    """The blend that is stored, or would be; ``bytes`` are 0 where it is still to be made."""

    name: str
    store: str
    documents: list[str]
    """In their order in the prompt."""
    policy: str
    recompute: float
    tokens: int
    """The prefix, the documents and the text between them."""
    recomputed_tokens: int
    bytes: int
    unchanged: bool
    outdated: list[str]
    """Documents that had changed since it was blended last."""
    dry_run: bool
    seconds: float


class MeasuredPreset(Value):
    """The setting that keeps a preset's promise, and what was measured with it."""

    setting: float
    met: bool
    kl: float
    bits_per_value: float
    retrieval: float | None
    tokens: int
    facts: int


class Calibrate(Value):
    """The calibration that was made."""

    method: str
    digest: str
    file: str
    model: ModelName
    tokens: int
    documents: int
    bytes: int
    presets: dict[str, MeasuredPreset]
    seconds: float
    problems: list[Problem]
    warnings: list[Problem]


class CalibratePlan(Value):
    """The calibration that a dry run would make."""

    dry_run: Literal[True]
    method: str
    model: ModelName
    tokens: int
    documents: int
    seconds: float | None
    """How long the model would run; null where it was never timed here."""


class Difference(Value):
    """``subject`` is not as it should be; ``step`` of a build mends that."""

    step: Literal["prefill", "remove", "compress", "evaluate", "sign", "push", "lock"]
    subject: str
    reason: str


class Build(Value):
    """What a build did."""

    differences: list[Difference]
    prefilled: list[str]
    removed: list[str]
    compressed: dict[str, list[str]]
    """Documents by variant."""
    verified: int
    """Artifacts that were read whole."""
    gate: list[Check]
    signed: list[str]
    pushed: list[str]
    problems: list[Problem]
    warnings: list[Problem]
    seconds: float


class NothingToBuild(Value):
    """All was as built."""

    differences: list[Difference]
    seconds: float


class BuildCheck(Value):
    """What ``--check`` finds."""

    differences: list[Difference]


class BuildEstimate(Value):
    """What a build would do. Null is what nothing tells."""

    documents: int
    tokens: int
    seconds: float | None
    nbytes: int | None
    variants: list[str]
    gates: list[str]
    problems: list[Problem]


class BuildPlan(Value):
    """What ``--dry-run`` says."""

    differences: list[Difference]
    estimate: BuildEstimate
