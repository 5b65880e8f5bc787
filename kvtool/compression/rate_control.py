"""Rate control: the setting of a recipe's dial that meets a target.

Sizes are those of encoded tensors with headers. KL is measured by running the model, as ``kvtool eval``
does. Both are measured on the first tokens of a few segments, spread over the documents.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager

from kvtool.calibration.search import Setting, search
from kvtool.codecs import Pipeline
from kvtool.codecs.recipe import Between
from kvtool.compression.target import Target, recipe_of
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
    needs = build(**{dial: parameter.default}).needs
    with _trial(target, store, names, model, needs) as measure:
        return search(
            lambda value: measure(build(**{dial: value})),
            target.limit,
            name=dial,
            start=float(parameter.default),
            between=(parameter.allowed.low, parameter.allowed.high),
            rising=target.unit == "max_kl",
        )


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
