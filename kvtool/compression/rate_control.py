"""Rate control: the setting of a recipe's dial that meets a target.

Sizes are those of encoded tensors with headers. KL is measured by running the model, as ``kvtool eval``
does. Both are measured on the first tokens of a few segments, spread over the documents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

from kvtool.calibration.search import Setting, search
from kvtool.codecs import Calibration, Parameter, Pipeline
from kvtool.codecs.recipe import Between, Dial
from kvtool.compression.target import MAX_KL, Target, recipe_of
from kvtool.errors import UsageError
from kvtool.measurement.trials import Starts, Trial, bits_trial, kl_trial, sample_segments
from kvtool.model.model import Model
from kvtool.store.base import Store


def find_setting(
    target: Target,
    recipe: str,
    build: Callable[..., Pipeline],
    store: Store,
    names: Sequence[str],
    model: Model | None,
) -> Setting:
    """Finds the setting that meets ``target`` on a few segments of ``names``, or comes nearest to it.

    ``build`` gives the pipeline for a value of the dial. Raises ``UsageError`` for KL without a model, and where no segment is
    long enough to measure KL on.
    """
    dialled = recipe_of(recipe)
    assert dialled.dial is not None
    dial = dialled.dial.parameter
    parameter = dialled.parameters[dial]
    assert isinstance(parameter.allowed, Between)
    default = build(**{dial: parameter.default})
    with _trial(target, store, names, model, default.needs) as measure:
        return search(
            lambda value: measure(build(**{dial: value})),
            target.limit,
            name=dial,
            start=likely_setting(target, dialled.dial, default.calibrations, parameter),
            between=(parameter.allowed.low, parameter.allowed.high),
            rising=target.unit == "max_kl",
        )


def likely_setting(
    target: Target, dial: Dial, calibrations: Sequence[Calibration], parameter: Parameter
) -> float:
    """Where to look first: where a line through what a calibration measured for presets, in logarithms, meets the target.

    The line is that of the two points nearest to it. Without two of them it is the parameter's default.
    """
    measured = [dial.measured(preset, one) for one in calibrations for preset in dial.presets]
    points = {}
    for one in measured:
        cost = one and (one.kl if target.unit == MAX_KL else one.bits_per_value)
        if one and cost and one.setting > 0:
            points[math.log(cost)] = math.log(one.setting)
    aim = math.log(target.limit)
    nearest = sorted(points, key=lambda cost: abs(cost - aim))[:2]
    if len(nearest) < 2:
        return float(parameter.default)
    (x0, x1), (y0, y1) = nearest, (points[cost] for cost in nearest)
    assert isinstance(parameter.allowed, Between)
    likely = math.exp(y0 + (aim - x0) * (y1 - y0) / (x1 - x0))
    return min(max(likely, parameter.allowed.low), parameter.allowed.high)


@contextmanager
def _trial(
    target: Target, store: Store, names: Sequence[str], model: Model | None, needs: Collection[str]
) -> Iterator[Trial]:
    """A function that measures a pipeline in the target's unit."""
    refs = sample_segments(store, names)
    if not target.needs_model:
        yield bits_trial(Starts(store, refs, model, needs))
    elif model is None:
        reason = "is measured by running the documents' model"
        raise UsageError("--max-kl", reason, "give --model, or compress(..., model=model)")
    else:
        with kl_trial(store, refs, model) as measure:
            yield measure
