"""Values of the other commands."""

from __future__ import annotations

from typing import Any, Literal

from kvtool.report.schemas.making import MeasuredPreset
from kvtool.report.schemas.value import Value


class Answer(Value):
    """The answer to one question."""

    documents: list[str]
    variants: list[str] | None
    """Those of the segments, in order; null with ``--no-cache``."""
    policy: str
    recomputed_tokens: int
    answer: str
    answer_tokens: int
    prompt_tokens: int
    cached_tokens: int
    read_bytes: int | None
    """Null unless ``--read`` is given, as ``stored_bytes`` is."""
    stored_bytes: int | None
    load_seconds: float
    first_token_seconds: float
    first_token_seconds_without_cache: float | None
    """Null unless ``--compare`` or ``--no-cache`` is given."""


class QuestionAnswer(Value):
    """A question with its answer."""

    question: str
    answer: str


class AnswerList(Value):
    """The answers to several questions."""

    documents: list[str]
    variants: list[str]
    policy: str
    answers: list[QuestionAnswer]
    cached_tokens: int
    recomputed_tokens: int
    load_seconds: float
    seconds: float


class Parameter(Value):
    """A parameter of a recipe."""

    default: Any
    allowed: str
    help: str


class Preset(Value):
    """A preset's promise."""

    max_kl: float
    min_retrieval: float
    setting: float


class MeasuredOn(Value):
    """What a model's calibration measured of the presets."""

    model: str
    calibration: str
    presets: dict[str, MeasuredPreset]


class Recipe(Value):
    """A way to compress a cache."""

    name: str
    summary: str
    paper: str | None
    needs: list[str]
    nominal_bits: float | None
    """Per value; null for a recipe with a calibration."""
    parameters: dict[str, Parameter]
    presets: dict[str, Preset]
    measured: list[MeasuredOn]


class Finding(Value):
    """Something that was looked at."""

    subject: str
    state: Literal["ok", "missing", "broken"]
    detail: str
    remedy: str


class Doctor(Value):
    """What was found."""

    findings: list[Finding]
