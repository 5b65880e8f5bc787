"""Inputs that codec stages need beyond keys and values, measured by running the model over a cache."""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor

from kvtool.codecs import Inputs, Pipeline
from kvtool.codecs.prune.scores.inputs import (
    COPIED,
    HIDDEN_COSINE,
    REPLAY_QUERIES,
    REPLAYED,
    TOKEN_ENTROPY,
)
from kvtool.codecs.spec import IMPORTANCE
from kvtool.engines.attention.cache_attention import refuse_biases
from kvtool.engines.attention.collect import COLLECTED, OF_WINDOW, collect
from kvtool.engines.attention.probe import observe
from kvtool.engines.attention.replay import replay
from kvtool.engines.cache import DocumentCache
from kvtool.engines.inputs.hidden_cosine import hidden_cosine
from kvtool.engines.inputs.token_entropy import token_entropy
from kvtool.errors import UsageError
from kvtool.model.model import Model

PROBED, BY_REPLAY = (
    frozenset({"attention", "queries"}),
    frozenset({IMPORTANCE, REPLAYED, REPLAY_QUERIES, COPIED}),
)
MEASURED = PROBED | BY_REPLAY | COLLECTED | {HIDDEN_COSINE, TOKEN_ENTROPY}
"""The inputs that kvtool can measure: with probes, by a replay, and in passes over the segment."""


def measure_inputs(model: Model, cache: DocumentCache, token_ids: Tensor, needs: Collection[str]) -> Inputs:
    """Those of ``needs`` that can be measured, by name: one tensor for each layer.

    They are of the segment ``token_ids`` [T] int64, the last T tokens of ``cache``. ``attention.probe``, ``attention.replay``,
    ``attention.collect`` and the modules of ``inputs`` say what each is. The model runs for nothing else, and the cache is
    left as it was.

    Raises ``ModelError`` as these do.
    """
    inputs: Inputs = {}
    if not PROBED.isdisjoint(needs):
        inputs = {**inputs, **observe(model, cache, token_ids)}
    if not BY_REPLAY.isdisjoint(needs):
        inputs = {**inputs, **replay(model, cache, token_ids)}
    if not COLLECTED.isdisjoint(needs):
        inputs = {**inputs, **collect(model, cache, token_ids, needs)}
    if HIDDEN_COSINE in needs:
        inputs = {**inputs, **hidden_cosine(model, cache, token_ids)}
    if TOKEN_ENTROPY in needs:
        inputs = {**inputs, **token_entropy(model, cache, token_ids)}
    return {name: tensors for name, tensors in inputs.items() if name in needs}


def measuring_cost(needs: Collection[str]) -> float:
    """The time that ``measure_inputs`` takes, as a multiple of that of prefilling the segment.

    As measured on 512 tokens of the embedded model.
    """
    costs = {
        PROBED: 0.2,
        BY_REPLAY: 1.7,
        COLLECTED - OF_WINDOW: 1.5,
        OF_WINDOW: 0.1,
        frozenset({HIDDEN_COSINE}): 1.2,
        frozenset({TOKEN_ENTROPY}): 1.4,
    }
    return sum(cost for names, cost in costs.items() if not names.isdisjoint(needs))


def refuse_unmeasurable(recipe: str, pipeline: Pipeline) -> None:
    """Raises ``UsageError`` for a pipeline that needs what kvtool cannot measure."""
    if unknown := pipeline.needs - MEASURED:
        raise UsageError(
            f"recipe {recipe!r}",
            f"needs {', '.join(sorted(unknown))}, which kvtool cannot measure",
            f"it can measure {', '.join(sorted(MEASURED))}",
        )


def refuse_unmet(recipe: str, pipeline: Pipeline, model: Model | None) -> None:
    """Raises ``UsageError`` for a pipeline that needs what kvtool cannot measure, or a model to measure with and has none.

    Raises ``ModelError`` for biases that ``model`` cannot read.
    """
    refuse_unmeasurable(recipe, pipeline)
    if pipeline.needs and model is None:
        raise UsageError(
            f"recipe {recipe!r} needs {' and '.join(sorted(pipeline.needs))}, which are measured by running "
            "the model that the documents were prefilled with",
            f"kvtool compress --recipe {recipe} --model MODEL, or compress(..., model=model)",
        )
    if model is not None and pipeline.prune is not None and pipeline.prune.biased:
        refuse_biases(model)
