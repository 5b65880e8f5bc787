"""Values of commands that measure."""

from __future__ import annotations

from typing import Any, Literal

from kvtool.report.schemas.value import Estimate, ModelName, Value


class Check(Value):
    """One limit on one candidate."""

    candidate: str
    metric: str
    value: float | None
    """Null where nothing was measured."""
    low: float | None
    high: float | None
    n: int | None
    """Null for what is counted and not estimated, as ``low`` and ``high`` are."""
    limit: float
    passed: bool
    significant: bool
    """Whether the limit lies outside the 95 % interval."""


class Memory(Value):
    """What caches take in files, and once they are loaded."""

    stored_bytes: int
    resident_bytes: int
    bits_per_value: float


class TaskScore(Value):
    """The score of one kind of task."""

    score: Estimate | None
    questions: int


class TurnScore(Value):
    """The score of one turn of conversations."""

    turn: int
    score: float
    questions: int


class PlaceScore(Value):
    """The score at one length of haystacks and one depth in them."""

    length: int
    depth: float
    score: float
    questions: int


class Retrieval(Value):
    """Facts that were hidden in long contexts, and found."""

    bits_per_value: float
    score: Estimate | None
    retention: Estimate | None
    """The share kept of the raw cache's right answers."""
    differs_from_raw: bool
    questions: int
    tasks: dict[str, TaskScore]
    turns: list[TurnScore]
    by_length_and_depth: list[PlaceScore]


class TurnAnswers(Value):
    """Agreement of the answers in one turn."""

    turn: int
    f1: float
    exact_match: float
    questions: int


class Example(Value):
    """An answer that differs."""

    document: str
    question: str
    turn: int
    raw: str
    answer: str
    f1: float


class Answers(Value):
    """Agreement with the answers over the raw cache to the user's questions."""

    exact_match: Estimate | None
    f1: Estimate | None
    questions: int
    turns: list[TurnAnswers]
    examples: list[Example]


class RelativeError(Value):
    """The norm of the error over the norm of the cache, by layer and head."""

    keys: list[list[float]]
    values: list[list[float]]


class CandidateTimes(Value):
    """Medians, in seconds."""

    encode_seconds: float
    load_seconds: float
    ttft_seconds: float | None
    ttft_speedup: Estimate | None
    peak_bytes: int | None


class DocumentMeans(Value):
    """Means over one document's tokens; null for what is no number."""

    name: str
    bits_per_value: float
    kl: float | None
    dnll: float | None
    top1: float | None


class Candidate(Value):
    """A way to store a cache, and what it costs. What was not measured is null."""

    name: str
    kind: Literal["raw", "recipe", "peer"]
    family: str
    summary: str
    paper: str
    bits_per_value: float
    ratio: float
    """16 divided by the bits per value."""
    memory: Memory | None
    kl: Estimate | None
    dnll: Estimate | None
    top1: Estimate | None
    retrieval: Retrieval | None
    answers: Answers | None
    relative_error: RelativeError | None
    times: CandidateTimes | None
    by_document: list[DocumentMeans]


class MeasuredDocument(Value):
    """A segment, and how many of its tokens were cached and predicted."""

    name: str
    segment: int
    cached_tokens: int
    predicted_tokens: int


class MeasuredModel(ModelName):
    """The model, with the shape of its caches."""

    dtype: str
    layers: int
    kv_heads: int


class Times(Value):
    """What the times were measured on."""

    document: str
    tokens: int
    repeats: int
    prefill_seconds: float


class Evaluation(Value):
    """An evaluation."""

    format: int
    command: str
    created: str
    """UTC, as ISO 8601."""
    kvtool: str
    machine: dict[str, Any]
    model: MeasuredModel
    settings: dict[str, Any]
    documents: list[MeasuredDocument]
    candidates: list[Candidate]
    """The raw cache first."""
    times: Times | None
    notes: list[str]
    gate: list[Check] | None
    """Null where no limits were given."""


class Recommended(Value):
    """The choice for one level."""

    level: str
    promise: str
    candidate: str | None
    """Null where nothing keeps the promise."""
    reason: str
    command: str | None
    """Null for what the store has already."""


class Considered(Value):
    """A candidate's place. ``dominated_by`` is null on the frontier."""

    name: str
    load_percent: int
    dominated_by: str | None


class Recommendation(Value):
    """A recipe for each level, and what they were chosen from."""

    format: int
    recommended: list[Recommended]
    candidates: list[Considered]
    evaluation: Evaluation


class BreakEvenModel(Value):
    """The model that was measured."""

    name: str
    fingerprint: str
    dtype: str


class Link(Value):
    """The link over which files are transferred, as it was given."""

    rate: str
    bytes_per_second: float


class SavesFrom(Value):
    """The number of tokens from which a use of the cache saves time."""

    tokens: int | None
    """Null where no measured length does."""
    at_most: bool
    """Whether the shortest length that was measured saves time already."""
    text: str


class LengthCosts(Value):
    """Seconds at one length."""

    tokens: int
    bytes: int
    prefill_seconds: float
    write_seconds: float
    encode_seconds: float
    make_seconds: float
    """What is spent once."""
    transfer_seconds: float
    load_seconds: float
    saving_seconds: float
    """What each use saves; below 0 where it costs."""
    uses: int | None
    """Uses that pay back what was spent once; null where none do."""


class BreakEvenVariant(Value):
    """A variant. ``bytes_per_token`` are of the longest text that was measured."""

    name: str
    bytes_per_token: float
    calibration_bytes: int
    saves_from: SavesFrom
    lengths: list[LengthCosts]


class BreakEven(Value):
    """When a cache pays on this machine."""

    format: int
    kvtool: str
    machine: dict[str, Any]
    model: BreakEvenModel
    link: Link | None
    variants: list[BreakEvenVariant]
    notes: list[str]
