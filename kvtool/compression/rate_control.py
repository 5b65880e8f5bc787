"""One number for how small or how good: a recipe's dial is turned until what it gives reaches it.

Sizes are those of encoded tensors with headers; KL is measured by running the model, as ``kvtool eval`` does. Both on
the starts of a few segments, spread over the documents.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kvtool.artifact.measure import measure_artifact
from kvtool.codecs import KV, CodecError, Inputs, LayerKV, Pipeline, Recipe, encode
from kvtool.codecs.recipe import Between
from kvtool.codecs.registry import recipe as recipe_named
from kvtool.codecs.spec import BY_TOKEN
from kvtool.compression.workers import Task
from kvtool.errors import UsageError
from kvtool.store.base import Store
from kvtool.store.manifest import RAW

if TYPE_CHECKING:
    from kvtool.model.model import Model

SEGMENTS = 4
"""That are tried out."""

HEAD = 4096
"""Tokens of each of them at most, when sizes are tried: what the rest would cost follows from these. From 1,024 of 1,200
tokens a size came out 5 % too small."""

TRIES, CLOSE = 10, 0.02
"""Tries at most, and how far below the target, as a share of it, is near enough."""

TRIAL = "trial"

UNITS, PRESET = ("bits", "ratio", "max_kl"), "preset"


@dataclass(frozen=True)
class Target:
    """Bits per value at the most, a ratio to 16 bits at the least, or a KL in nats per token at the most."""

    unit: str
    value: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.value) and self.value > 0):
            option = "--" + self.unit.replace("_", "-")
            raise UsageError(f"{option} {self.value:g}", "expected a number above 0")

    def to_json(self) -> dict[str, Any]:
        return {"unit": self.unit, "value": self.value}

    @property
    def limit(self) -> float:
        """What is measured, bits per value or KL, may be this at the most."""
        return 16 / self.value if self.unit == "ratio" else self.value

    @property
    def needs_model(self) -> bool:
        """Whether reaching it is measured by running the documents' model, whatever the recipe needs."""
        return self.unit == "max_kl"

    def said(self, measured: float) -> str:
        """``measured`` in the target's own unit."""
        if self.unit == "ratio":
            return f"ratio {16 / measured:.1f}"
        return f"{measured:.3f} bits per value" if self.unit == "bits" else f"KL {measured:.4f}"


@dataclass(frozen=True)
class Setting:
    """Where the dial stands, and what was measured there; ``met`` is whether that reaches the target."""

    name: str
    value: float
    measured: float
    met: bool

    @property
    def parameter(self) -> dict[str, float]:
        return {self.name: self.value}


def asked(
    name: str, parameters: Mapping[str, int | float | str]
) -> tuple[Target | None, dict[str, int | float | str]]:
    """What is asked of the recipe's dial, if anything is, and the parameters that are left.

    ``bits``, ``ratio``, ``max_kl`` and ``preset`` are meant for the dial unless the recipe has a parameter so called; a
    preset is a setting, so it becomes one. Raises ``UsageError`` for a recipe without a dial and for two demands.
    """
    left, recipe = dict(parameters), _recipe(name)
    units = [unit for unit in (*UNITS, PRESET) if unit in left and unit not in recipe.parameters]
    if not units:
        return None, left
    options = " and ".join("--" + unit.replace("_", "-") for unit in units)
    if recipe.dial is None:
        have = ", ".join(recipe.parameters) or "none"
        raise UsageError(
            options, f"recipe {recipe.name!r} has no dial to turn", f"its parameters are: {have}"
        )
    if len(units) > 1 or recipe.dial.parameter in left:
        also = f" and {recipe.dial.parameter}" if recipe.dial.parameter in left else ""
        raise UsageError(f"{options}{also}", "say the same thing in different ways", "give one")
    value = left.pop(units[0])
    if units[0] == PRESET:
        if value not in recipe.dial.presets:
            raise UsageError(f"--preset {value}", f"expected one of {', '.join(recipe.dial.presets)}")
        return None, {**left, recipe.dial.parameter: recipe.dial.presets[str(value)]}
    if isinstance(value, str):
        raise UsageError(f"{options} {value}", "expected a number")
    return Target(units[0], float(value)), left


def turned(
    target: Target,
    name: str,
    build: Callable[..., Pipeline],
    store: Store,
    names: Sequence[str],
    model: Model | None,
) -> Setting:
    """Where the recipe's dial meets ``target`` on a few segments of ``names``, or comes nearest to it.

    Raises ``UsageError`` for KL without a model, and where no segment is long enough for it.
    """
    recipe = _recipe(name)
    assert recipe.dial is not None
    dial = recipe.dial.parameter
    parameter = recipe.parameters[dial]
    assert isinstance(parameter.allowed, Between)
    between = (parameter.allowed.low, parameter.allowed.high)
    tasks = sampled(store, names)
    with ExitStack() as stack:
        if target.needs_model:
            if model is None:
                raise UsageError(
                    "--max-kl",
                    "is measured by running the documents' model",
                    "give --model, or compress(..., model=model)",
                )
            measure = stack.enter_context(kl(store, tasks, model))
        else:
            measure = bits_per_value(store, tasks, model)
        return solve(
            lambda setting: measure(build(**{dial: setting})),
            target.limit,
            name=dial,
            start=float(parameter.default),
            between=between,
            rising=target.unit == "max_kl",
        )


def _recipe(name: str) -> Recipe:
    try:
        return recipe_named(name)
    except CodecError as error:
        raise UsageError(None, error) from error


def rounded(setting: float) -> float:
    """To four digits: what is written into every artifact can be said again."""
    return float(f"{setting:.4g}")


def solve(
    measure: Callable[[float], float],
    limit: float,
    *,
    name: str = "",
    start: float,
    between: tuple[float, float],
    rising: bool,
) -> Setting:
    """The setting within ``between`` at which ``measure`` is as near below ``limit`` as a few tries find.

    ``measure`` rises with the setting, or else falls. Each try is where a straight line through the last two, in
    logarithms, meets the limit, or halfway where that leads nowhere. If no setting is good enough, the nearest.
    """
    good: tuple[float, float] | None = None
    bad: tuple[float, float] | None = None
    # Towards the end that is surely good if any is.
    safe, far = between if rising else between[::-1]
    setting = start
    for _ in range(TRIES):
        measured = max(measure(setting), 1e-12)
        if measured <= limit:
            good = (setting, measured)
        else:
            bad = (setting, measured)
        if good and (measured_enough(good[1], limit) or good[0] == far):
            break
        if bad and bad[0] == safe:
            break
        setting = rounded(_next(good, bad, limit, safe, far))
    if good:
        return Setting(name, *good, met=True)
    assert bad is not None
    return Setting(name, *bad, met=False)


def measured_enough(measured: float, limit: float) -> bool:
    return measured >= (1 - CLOSE) * limit


def _next(
    good: tuple[float, float] | None, bad: tuple[float, float] | None, limit: float, safe: float, far: float
) -> float:
    if good is None or bad is None:
        setting, measured = good or bad or (safe, limit)
        # Sizes and errors go about with the setting itself, so that a guess is the factor that is missing.
        missing = max(limit / measured, measured / limit, 1.1)
        towards = far if good else safe
        moved = setting * missing if towards > setting else setting / missing
        return min(moved, towards) if towards > setting else max(moved, towards)
    (x0, y0), (x1, y1) = good, bad
    share = (math.log(limit * (1 - CLOSE / 2)) - math.log(y0)) / (math.log(y1) - math.log(y0))
    # At the ends of the interval a line may stand still.
    return math.exp(math.log(x0) + min(max(share, 0.1), 0.9) * (math.log(x1) - math.log(x0)))


def sampled(store: Store, names: Sequence[str]) -> list[Task]:
    """Up to four segments with tokens, spread evenly over all."""
    there = [
        Task(name, index)
        for name in names
        for index, segment in enumerate(store[name].segments)
        if segment.n_tokens
    ]
    n = min(SEGMENTS, len(there))
    return [there[(2 * k + 1) * len(there) // (2 * n)] for k in range(n)]


def bits_per_value(store: Store, tasks: Sequence[Task], model: Model | None) -> Callable[[Pipeline], float]:
    """What measures a pipeline's bits per value over the starts of ``tasks``: 8 times all bytes, with headers, ÷ keys
    and values."""
    heads: dict[Task, tuple[KV, Inputs]] = {}

    def measure(pipeline: Pipeline) -> float:
        nbytes = elements = 0
        for task in tasks:
            if task not in heads:
                heads[task] = _head(store, task, pipeline, model)
            kv, inputs = heads[task]
            nbytes += encode(kv, pipeline, inputs=inputs).nbytes
            elements += kv.n_elements
        return 8 * nbytes / max(elements, 1)

    return measure


@contextmanager
def kl(store: Store, tasks: Sequence[Task], model: Model) -> Iterator[Callable[[Pipeline], float]]:
    """What measures the mean KL in nats per token over the starts of ``tasks``, as ``kvtool eval`` defines it."""
    from kvtool.evaluation.run import head
    from kvtool.measurement.bench import Bench
    from kvtool.measurement.contexts import Place, text_contexts
    from kvtool.measurement.distortion import distortion
    from kvtool.measurement.reference import followed, reference
    from kvtool.measurement.scope import Scope
    from kvtool.model.chat_template import prefix_again

    contexts, _ = text_contexts(
        store, [Place(task.document, task.segment) for task in tasks], Scope(metrics=("kl",))
    )
    if not contexts:
        raise UsageError(
            "--max-kl",
            "no segment is long enough to measure KL on",
            "prefill longer documents, or use --ratio",
        )
    with ExitStack() as stack:
        trials = []
        for context in contexts:
            assert context.place is not None
            document = store[context.place.document]
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kvtool-")))
            *before, _ = store.parts(document.name, RAW, context.place.segment)
            prefix = prefix_again(model, document.prefix["origin"])
            bench = Bench(folder, model, prefix, before[0].kv() if before else None)
            stack.enter_context(bench.holding(head(store, context.place, len(context.token_ids))))
            trials.append((bench, context, reference(bench, context).logits))

        def measure(pipeline: Pipeline) -> float:
            found: list[float] = []
            for bench, context, raw in trials:
                bench.encode(pipeline, TRIAL)
                assert raw is not None
                found += distortion(raw, followed(bench, bench.load(TRIAL), context), context.targets).kl
            return sum(found) / len(found)

        yield measure


def _head(store: Store, task: Task, pipeline: Pipeline, model: Model | None) -> tuple[KV, Inputs]:
    """A segment's first tokens, and what the pipeline needs of them, measured over all of the segment."""
    inputs: Inputs = {}
    if pipeline.needs and model is not None:
        parts = store.parts(task.document, RAW, task.segment)
        inputs = measure_artifact(model, parts, pipeline.needs)
    cut = {
        name: [tensor[..., :HEAD].clone() for tensor in tensors] if name in BY_TOKEN else tensors
        for name, tensors in inputs.items()
    }
    kv = store.read(task.document, RAW, task.segment).of(range(HEAD))
    # Views would keep all of a long segment in memory.
    layers = tuple(LayerKV(x.keys.clone(), x.values.clone(), x.positions) for x in kv.layers)
    return replace(kv, layers=layers), cut
