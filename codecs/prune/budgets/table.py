"""Shares of layers by name, and the inputs of each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from kvtool.codecs.kv import LayerKV
from kvtool.codecs.prune.budgets import layers as of_layers
from kvtool.codecs.prune.budgets.budget import Budget, Scores
from kvtool.codecs.prune.scores.inputs import HIDDEN_COSINE, RECEIVED, WINDOW_WEIGHTS, read
from kvtool.codecs.prune.scores.window import cake_preference
from kvtool.codecs.spec import Payload

Layers: TypeAlias = Sequence[LayerKV]
Inputs: TypeAlias = Sequence[Payload]


@dataclass(frozen=True)
class Shares:
    """``of`` gives the shares of all layers, for ``heads.by_layer`` and ``heads.ada_kv``, from the ``needs`` of each layer."""

    of: Callable[[Scores, Budget, Layers, Inputs], list[float]]
    needs: frozenset[str] = frozenset()


def _received(layers: Layers, inputs: Inputs) -> Scores:
    return [read(some, RECEIVED, layer) for layer, some in zip(layers, inputs, strict=True)]


def _pyramid(scores: Scores, budget: Budget, layers: Layers, inputs: Inputs) -> list[float]:
    return of_layers.pyramid(scores, budget)


def _cake(scores: Scores, budget: Budget, layers: Layers, inputs: Inputs) -> list[float]:
    preferences = [cake_preference(layer, some) for layer, some in zip(layers, inputs, strict=True)]
    return of_layers.cake(scores, preferences)


def _squeeze(scores: Scores, budget: Budget, layers: Layers, inputs: Inputs) -> list[float]:
    cosines = [float(read(some, HIDDEN_COSINE, layer)) for layer, some in zip(layers, inputs, strict=True)]
    return of_layers.squeeze(scores, cosines)


def _prefix_kv(scores: Scores, budget: Budget, layers: Layers, inputs: Inputs) -> list[float]:
    return of_layers.prefix_kv(_received(layers, inputs), budget)


def _d2o(scores: Scores, budget: Budget, layers: Layers, inputs: Inputs) -> list[float]:
    return of_layers.d2o(_received(layers, inputs))


SHARES = {
    "cake": Shares(_cake, frozenset({WINDOW_WEIGHTS})),
    "d2o": Shares(_d2o, frozenset({RECEIVED})),
    "prefixkv": Shares(_prefix_kv, frozenset({RECEIVED})),
    "pyramid": Shares(_pyramid),
    "squeezeattention": Shares(_squeeze, frozenset({HIDDEN_COSINE})),
}
