"""Rate control: the setting of a recipe's dial that meets a target.

Sizes are those of encoded tensors with headers. KL is measured by running the model, as ``kvtool eval`` does. Both are
measured on the first tokens of a few segments, spread over the documents.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from kvtool.codecs import Pipeline
from kvtool.codecs.recipe import Between
from kvtool.compression.target import Setting, Target, recipe_of
from kvtool.errors import UsageError
from kvtool.measurement.trials import Trial, bits_trial, kl_trial, sample_segments
from kvtool.model.model import Model
from kvtool.store.base import Store

TRIES = 10
"""The most settings that are tried."""

CLOSE = 0.02
"""The distance below the target that is near enough, as a share of it."""

Point = tuple[float, float]
"""A setting, and what was measured with it."""


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
    with _trial(target, store, names, model) as measure:
        return search(
            lambda value: measure(build(**{dial: value})),
            target.limit,
            name=dial,
            start=float(parameter.default),
            between=(parameter.allowed.low, parameter.allowed.high),
            rising=target.unit == "max_kl",
        )


@contextmanager
def _trial(target: Target, store: Store, names: Sequence[str], model: Model | None) -> Iterator[Trial]:
    """A function that measures a pipeline in the target's unit."""
    refs = sample_segments(store, names)
    if not target.needs_model:
        yield bits_trial(store, refs, model)
    elif model is None:
        reason = "is measured by running the documents' model"
        raise UsageError("--max-kl", reason, "give --model, or compress(..., model=model)")
    else:
        with kl_trial(store, refs, model) as measure:
            yield measure


def search(
    measure: Callable[[float], float],
    limit: float,
    *,
    name: str = "",
    start: float,
    between: tuple[float, float],
    rising: bool,
) -> Setting:
    """Searches ``between`` for the setting at which ``measure`` is as little as possible below ``limit``.

    ``measure`` rises with the setting if ``rising``, and falls with it otherwise. Each try is where a straight line through
    two points, in logarithms, meets the limit, or halfway where that leads nowhere. If no setting meets the limit, the
    result is the nearest.
    """
    good: Point | None = None
    bad: Point | None = None
    # The safe end meets the limit if any setting does.
    safe, far = between if rising else between[::-1]
    setting = start
    for _ in range(TRIES):
        measured = max(measure(setting), 1e-12)
        if measured <= limit:
            good = (setting, measured)
        else:
            bad = (setting, measured)
        if good and (good[1] >= (1 - CLOSE) * limit or good[0] == far):
            break
        if bad and bad[0] == safe:
            break
        # Four digits: the setting is written into every artifact, and people type it again.
        setting = float(f"{_next_setting(good, bad, limit, safe, far):.4g}")
    if good:
        return Setting(name, *good, met=True)
    assert bad is not None
    return Setting(name, *bad, met=False)


def _next_setting(good: Point | None, bad: Point | None, limit: float, safe: float, far: float) -> float:
    if good and bad:
        return _between(good, bad, limit)
    setting, measured = good or bad or (safe, limit)
    # Sizes and errors are roughly proportional to the setting, so the factor that is missing is a guess.
    factor = max(limit / measured, measured / limit, 1.1)
    end = far if good else safe
    return min(setting * factor, end) if end > setting else max(setting / factor, end)


def _between(good: Point, bad: Point, limit: float) -> float:
    """Where the line through both points, in logarithms, comes just below the limit."""
    (x0, y0), (x1, y1) = good, bad
    share = (math.log(limit * (1 - CLOSE / 2)) - math.log(y0)) / (math.log(y1) - math.log(y0))
    # Near the ends of the interval the search could stand still.
    return math.exp(math.log(x0) + min(max(share, 0.1), 0.9) * (math.log(x1) - math.log(x0)))
