"""A paper's method as data: which stages, for keys and for values, with which parameters."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias, cast

import torch

from kvtool.codecs.calibration import Calibration
from kvtool.codecs.errors import CodecError, NeedsCalibration
from kvtool.codecs.geometry import Geometry
from kvtool.codecs.pipeline import Pipeline
from kvtool.codecs.rope import Rope
from kvtool.codecs.spec import Array, Place

Value: TypeAlias = "int | float | str"

WINDOWS = ("sinks", "recent")
"""Parameters that keep the first and the last tokens apart."""

PRESETS = "presets"
"""The name, among a calibration's facts, of what it measured for each preset."""


@dataclass(frozen=True)
class Between:
    """Every number from ``low`` to ``high``."""

    low: float
    high: float

    def __contains__(self, value: object) -> bool:
        return isinstance(value, (int, float)) and self.low <= value <= self.high


@dataclass(frozen=True)
class Parameter:
    """One parameter of a recipe: its default (the paper's), the values allowed, and what it means."""

    default: Value
    allowed: Collection[Value] | Between
    help: str

    def accepts(self, value: object) -> bool:
        # `True in range(1, 9)` and `2.0 in range(1, 9)` hold, and neither is meant; 1 for 1.0 is.
        exact = type(value) is type(self.default) or (type(value) is int and type(self.default) is float)
        return exact and value in self.allowed

    @property
    def choices(self) -> str:
        """The allowed values, for people."""
        if isinstance(self.allowed, range):
            return f"{self.allowed.start} to {self.allowed.stop - 1}"
        if isinstance(self.allowed, Between):
            return f"{self.allowed.low:g} to {self.allowed.high:g}"
        return ", ".join(map(repr, self.allowed))


@dataclass(frozen=True)
class Preset:
    """A promise about quality, the same on every model.

    The mean KL to the raw cache is at most ``max_kl`` nats per token. Of the facts that are found over the raw cache, at least
    the share ``min_retrieval`` is still found. ``setting`` of the dial is for calibrations that measured none.
    """

    max_kl: float
    min_retrieval: float
    setting: float

    def describe(self) -> str:
        """The promise, for people."""
        return f"KL at most {self.max_kl:g}, {self.min_retrieval:.0%} of the facts still found"


@dataclass(frozen=True)
class MeasuredPreset:
    """The setting that a calibration found for a preset, and what was measured with it on held-back text of the model.

    ``met`` says whether the promise is kept; if not, the setting comes nearest. ``kl`` is a mean over ``tokens``.
    ``retrieval`` is the share still found of ``facts``, those that are found over the raw cache; None for too few of them.
    """

    setting: float
    met: bool
    kl: float
    bits_per_value: float
    retrieval: float | None
    tokens: int
    facts: int

    def __post_init__(self) -> None:
        numbers = [self.setting, self.kl, self.bits_per_value, self.tokens, self.facts]
        if self.retrieval is not None:
            numbers.append(self.retrieval)
        if type(self.met) is not bool or any(type(number) not in (int, float) for number in numbers):
            raise TypeError("expected numbers, and met true or false")

    def describe(self) -> str:
        """What was measured, for people."""
        retrieval = "" if self.retrieval is None else f", {self.retrieval:.0%} of {self.facts} facts found"
        return f"KL about {self.kl:.2g}, {self.bits_per_value:.2g} bits per value{retrieval}"


@dataclass(frozen=True)
class Dial:
    """The one parameter that trades size for quality: both fall as it rises.

    ``default`` names the preset that decides the parameter's default, empty for none.
    """

    parameter: str
    presets: Mapping[str, Preset] = field(default_factory=dict)
    default: str = ""

    def measured(self, preset: str, calibration: Calibration | None) -> MeasuredPreset | None:
        """What the calibration measured for ``preset``; None for an older one, or one of too little text."""
        presets = calibration.facts.get(PRESETS) if calibration else None
        if not isinstance(presets, dict) or preset not in presets:
            return None
        try:
            return MeasuredPreset(**cast("dict[str, Any]", presets[preset]))
        except TypeError as error:
            assert calibration is not None
            raise CodecError(
                f"{calibration.label}: preset {preset!r} is not as kvtool writes it ({error})"
            ) from error

    def setting(self, preset: str, calibration: Calibration | None) -> float:
        """The measured setting of ``preset``, or the one for calibrations that measured none."""
        measured = self.measured(preset, calibration)
        return measured.setting if measured else self.presets[preset].setting


@dataclass(frozen=True)
class Recipe:
    """A named way to build a pipeline.

    ``paper`` is the arXiv id and title, empty where there is none; ``make`` takes the parameters by name.

    ``calibration`` is the method of the calibration that ``make`` wants under that name, beside the parameters;
    empty for most. ``fit`` then makes one from samples of a model's caches (``Sequence[Sample]``) and from options
    by name; it knows no model, the caller names it (``Calibration.made``). Samples may be iterated more than
    once; with ``gradients`` they have gradients in the first iteration. With ``embedding`` one of the
    options is the model's input embeddings under that name, [vocabulary, width] float32, and another their
    ``embedding_digest``, None where ``kvtool.codecs.klt.embeddings`` cannot find them by it. With ``steps`` one is
    ``on_step``, which gets the steps that are done after the first iteration, and how many there are.
    ``fit_nbytes`` estimates the memory that ``fit`` takes beside the samples, from the geometry of one and the tokens of all.
    ``uncalibrated`` are values of parameters with any of which ``make`` wants no calibration after all, and gets none.

    ``dial`` is for recipes that can be asked for a size or a quality instead of for parameters. Its default preset has the last
    word on the default of its parameter: that is what the calibration measured.

    ``prunes``: its pipelines leave out tokens and store the others as they are, so that another recipe can code them.
    ``narrows``: they do so with channels of keys.
    """

    name: str
    summary: str
    make: Callable[..., Pipeline]
    paper: str = ""
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    calibration: str = ""
    fit: Callable[..., Calibration] | None = None
    fit_nbytes: Callable[[Geometry, int], int] = lambda geometry, tokens: 0
    gradients: bool = False
    embedding: bool = False
    steps: bool = False
    uncalibrated: Mapping[str, Value] = field(default_factory=dict)
    dial: Dial | None = None
    prunes: bool = False
    narrows: bool = False

    def build(self, calibration: Calibration | None = None, **parameters: Value) -> Pipeline:
        """The pipeline for these parameters, the others at their defaults, or at what the calibration measured.

        Raises CodecError for an unknown parameter, for a value that is not allowed, with those that are, and for a
        calibration of another method; NeedsCalibration where one is needed and not given.
        """
        defaults = {name: parameter.default for name, parameter in self.parameters.items()}
        if self.dial and self.dial.default:
            setting = self.dial.setting(self.dial.default, calibration)
            parameters = {self.dial.parameter: setting, **parameters}
        self.check(parameters)
        # Written one way, so that 1 and 1.0 are one pipeline.
        parameters = {n: float(v) if type(defaults[n]) is float else v for n, v in parameters.items()}
        return self.make(**(defaults | parameters), **self._calibrated(calibration, parameters))

    def check(self, parameters: Mapping[str, Value]) -> None:
        """Raises CodecError for parameters as ``build`` does, before there is a calibration."""
        for name, value in parameters.items():
            if name not in self.parameters:
                known = ", ".join(self.parameters) or "none"
                prunes = f"; to leave out tokens first, name it kvzip+{self.name}" if name == "keep" else ""
                raise CodecError(f"recipe {self.name!r} has no parameter {name!r}; it has: {known}{prunes}")
            if not self.parameters[name].accepts(value):
                choices = self.parameters[name].choices
                raise CodecError(f"recipe {self.name!r}: {name} is {value!r}, expected {choices}")

    def needs_calibration(self, parameters: Mapping[str, Value]) -> bool:
        """Whether ``build`` wants a calibration with these parameters, the others at their defaults."""
        without = self.uncalibrated.items() & parameters.items()
        return bool(self.calibration) and not without

    def _calibrated(
        self, calibration: Calibration | None, parameters: Mapping[str, Value]
    ) -> dict[str, Calibration]:
        needed = self.needs_calibration(parameters)
        if calibration is None:
            if needed:
                raise NeedsCalibration(self.name, self.calibration)
            return {}
        if not needed or calibration.method != self.calibration:
            expected = f"one of {self.calibration!r}" if needed else "none"
            raise CodecError(
                f"recipe {self.name!r}: calibration {calibration.digest} is of method {calibration.method!r}, "
                f"expected {expected}"
            )
        return {"calibration": calibration}

    def nominal_bits(self, **parameters: Value) -> float:
        """Bits per value of 1,024 tokens of a common model (32 layers, 8 heads of 128 channels, 16 bits).

        Entropy-coded tensors count with the most bytes that they can take, and tokens that are left out with none. The container
        is not counted. Raises NeedsCalibration where one is needed: it is of another model, and what it learned decides.
        """
        pipeline = self.build(None, **parameters)
        x = Array((8, 1024, 128), torch.float16)
        rope = Rope(tuple(10_000 ** (-i / 64) for i in range(64)))
        layers = min(pipeline.layers or 32, 32)
        total = 32 - 32 % layers
        places = (Place(first, layers, 32, (rope,) * layers) for first in range(0, total, layers))
        keep = pipeline.prune.budget(total).keep if pipeline.prune else 1.0
        return keep * 8 * sum(pipeline.plan(x, x, place).nbytes for place in places) / (2 * total * x.numel)


def combined(prunes: Recipe, codes: Recipe) -> Recipe:
    """The recipe that leaves out tokens or channels as ``prunes`` does, and codes what stays as ``codes`` does.

    It has the parameters of both. ``WINDOWS`` are 0 where nothing else is asked for: of packed heads nobody knows which tokens
    are the first and the last. Raises CodecError unless the first leaves something out, and nothing else, and the second no
    tokens; and, when it is built, for channels of layers that are coded together.
    """
    name = f"{prunes.name}+{codes.name}"
    if not (prunes.prunes or prunes.narrows) or codes.prunes or (prunes.narrows and codes.narrows):
        raise CodecError(
            f"recipe {name!r}: expected one that prunes, a plus, and one that does not, as in kvzip+kivi"
        )

    def make(**parameters: Any) -> Pipeline:
        first = {key: value for key, value in parameters.items() if key in prunes.parameters}
        second = {key: value for key, value in parameters.items() if key not in prunes.parameters}
        left, coded = prunes.make(**first), codes.make(**second)
        if left.keys and coded.grouped:
            reason = "each layer leaves out other channels, expected a recipe that codes layer by layer after the plus"
            raise CodecError(f"recipe {name!r}: {reason}")
        narrowing = tuple(stage for stage in left.keys if stage.kind == "transform")
        return replace(coded, keys=narrowing + coded.keys if coded.keys else left.keys, prune=left.prune)

    windows = {key: replace(codes.parameters[key], default=0) for key in WINDOWS if key in codes.parameters}
    return replace(
        codes,
        name=name,
        summary=f"{prunes.summary}; {codes.summary}",
        paper=f"{prunes.paper}; {codes.paper}",
        make=make,
        parameters={**prunes.parameters, **codes.parameters, **windows},
        # What presets promise was measured with all tokens.
        dial=codes.dial and Dial(codes.dial.parameter),
    )
